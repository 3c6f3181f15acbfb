"""The streams of the page: changes, problems, slow clients and those that are gone."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tamiyo.streams.watch import server as module
from tamiyo.streams.watch import stream, views
from tamiyo.streams.watch.history import History, Observed
from tamiyo.streams.watch.server import WatchServer
from tests.streams.watch import watched
from tests.streams.watch.served import Client, get, problem, until
from tests.streams.watch.views.merged import comparable, merged


def test_a_stream_begins_with_the_whole_and_goes_on_with_changes(
    server: WatchServer, history: History, open_stream: Callable[[str], Client]
) -> None:
    client = open_stream("/api/stream/run?run=run-1")
    assert client.response.headers["Content-Type"] == "text/event-stream"
    state = merged(None, client.event())
    assert (state["whole"], state["series"]["step"]) == (True, [10])
    for step in (20, 30):
        history.take([Observed.of(watched.performance(step), 1_000 + step)])
        change = client.event()
        assert (change["whole"], change["series"]["step"], change["decisions"]) == (False, [step], [])
        state = merged(state, change)
    history.take([Observed.of(watched.outcome(watched.decision()), 3_000)])
    state = merged(state, client.event())
    assert comparable(state) == comparable(json.loads(json.dumps(views.run(history, "run-1"))))


def test_a_stream_is_silent_about_what_its_view_does_not_show(
    server: WatchServer, history: History, open_stream: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SOURCE_S", 60.0)
    client = open_stream("/api/stream/run?run=run-1")
    client.event()
    history.take([Observed.of(watched.performance(10, run_id="run-2"), 1_000)])
    time.sleep(0.15)  # by now the stream waits until it may send newer counts
    history.take([Observed.of(watched.performance(20), 1_020)])
    assert client.event()["series"]["step"] == [20]


def test_changes_are_sent_at_most_twenty_times_a_second(
    server: WatchServer, history: History, open_stream: Callable[[str], Client]
) -> None:
    client = open_stream("/api/stream/run?run=run-1")
    client.event()
    began, events, step = time.monotonic(), 0, 10
    stop = threading.Event()

    def feed() -> None:
        for step in range(20, 100_000):
            history.take([Observed.of(watched.performance(step), 1_000 + step)])
            if stop.wait(0.002):
                return

    feeding = threading.Thread(target=feed)
    feeding.start()
    shown: list[int] = []
    while time.monotonic() - began < 1.0:
        shown += client.event()["series"]["step"]
        events += 1
    stop.set()
    feeding.join()
    assert 5 <= events <= 22
    assert shown == list(range(20, 20 + len(shown)))
    assert step == 10


def test_a_problem_of_the_source_is_sent(
    server: WatchServer, history: History, open_stream: Callable[[str], Client]
) -> None:
    client = open_stream("/api/stream/policy")
    client.event()
    history.update_source(problem="the broker is away")
    assert client.event()["source"]["problem"] == "the broker is away"


def test_heartbeats_keep_a_quiet_stream_alive(
    server: WatchServer, open_stream: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    client = open_stream("/api/stream/fleet")
    client.event()
    assert [client.line() for _ in range(3)] == [": still here"] * 3


def test_clients_that_are_gone_are_dropped(
    server: WatchServer, history: History, open_stream: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.05)
    clients = [open_stream("/api/stream/fleet") for _ in range(3)]
    for client in clients:
        client.event()
    assert len(server.wakes) == 3
    for client in clients[:2]:
        client.response.close()
        client.close()
    until(lambda: len(server.wakes) == 1)
    history.take([Observed.of(watched.performance(20), 1_020)])
    assert clients[2].event()["runs"][0]["step"] == 20


def test_a_slow_client_gets_the_newest_state_and_no_queue(
    server: WatchServer, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = module._made

    def padded(*given: Any) -> tuple[int, bytes]:
        revision, body = real(*given)
        made.append(revision)
        return revision, body.replace(b"{", b'{"padding":"' + b"x" * 1_000_000 + b'",', 1)

    monkeypatch.setattr(module, "_made", padded)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(b"GET /api/stream/run?run=run-1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: made)
        for step in range(20, 100):
            history.take([Observed.of(watched.performance(step), 1_000 + step)])
            time.sleep(0.02)
        before = len(made)
        assert before <= 15  # what the buffers of both sockets take; then nothing is made
        history.take([Observed.of(watched.performance(500), 9_000)])
        tail = b""
        while b'"step":500' not in tail:
            tail = tail[-1_000:] + slow.recv(1 << 20)
        assert len(made) <= before + 3


def test_a_client_that_takes_nothing_is_dropped(
    server: WatchServer, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WRITE_S", 0.2)
    monkeypatch.setattr(module, "_made", lambda *given: (history.revision, b'{"x":"' + b"x" * 8_000_000 + b'"}'))
    stuck = socket.create_connection(("127.0.0.1", server.port))
    stuck.sendall(b"GET /api/stream/fleet HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: len(server.wakes) == 1)
    until(lambda: len(server.wakes) == 0)
    stuck.settimeout(10)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := stuck.recv(1 << 20):
            received = (received + part)[-10:]
    stuck.close()
    assert not received.endswith(b"0\r\n\r\n")  # the response has no end: the connection was cut


def test_too_many_streams_are_refused(
    server: WatchServer, open_stream: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS", 2)
    for _ in range(2):
        open_stream("/api/stream/fleet").event()
    assert "2 pages are open" in problem(server, "/api/stream/fleet", 503)
    assert get(server, "/api/view/fleet")[0] == 200


def test_a_stream_of_a_run_that_is_still_to_be_read_waits_for_it(
    server: WatchServer, history: History, open_stream: Callable[[str], Client]
) -> None:
    history.update_source(reading=True)
    opened: list[Client] = []
    opening = threading.Thread(target=lambda: opened.append(open_stream("/api/stream/run?run=run-2")))
    opening.start()
    until(lambda: len(server.wakes) == 1)
    history.take([Observed.of(watched.performance(10, run_id="run-2"), 1_000)])
    opening.join(10)
    assert opened[0].event()["run"]["run_id"] == "run-2"
    history.update_source(reading=False)
    assert get(server, "/api/stream/run?run=run-3")[0] == 404


def test_a_stream_ends_with_its_run(open_stream: Callable[[str], Client], page: Path) -> None:
    history = watched.history([(1, watched.performance(10))], max_runs=1)
    history.update_source(reading=False)
    with WatchServer(history, port=0, page=page) as made:
        client = Client(made, "/api/stream/run?run=run-1")
        client.event()
        history.take([Observed.of(watched.performance(10, run_id="run-2"), 2)])
        with pytest.raises(AssertionError, match="the stream has ended"):
            client.event()
        client.close()
