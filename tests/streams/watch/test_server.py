"""The server of the page: documents, streams, headers; hostile requests and slow clients."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.watch import server as module
from tamiyo.streams.watch import stream, views
from tamiyo.streams.watch.history import History, Observed
from tamiyo.streams.watch.server import WatchServer, to_json
from tests.streams.watch import watched
from tests.streams.watch.views.merged import comparable, merged

HOSTILE = [
    "../../etc/passwd",
    "<img src=x onerror=alert(1)>",
    "a\nb",
    "\x00",
    "‮abc",
    "é" * 100,
    "%2e%2e%2f",
    "' or 1=1",
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Return a folder with a small page."""
    (tmp_path / "page" / "vendor").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<!doctype html>")
    (tmp_path / "page" / "app.js").write_text("export {};")
    (tmp_path / "page" / "vendor" / "vendor.css").write_text("a {}")
    (tmp_path / "page" / "package.json").write_text("{}")
    (tmp_path / "secret.js").write_text("secret")
    return tmp_path / "page"


@pytest.fixture
def history() -> History:
    """Return a history of one run with a decision, whose source is live and read."""
    made = watched.history([(1_000, watched.performance(10)), (2_000, watched.decision())])
    made.update_source(reading=False)
    return made


@pytest.fixture
def server(history: History, page: Path) -> Iterator[WatchServer]:
    with WatchServer(history, port=0, page=page) as made:
        yield made


def get(
    server: WatchServer, path: str, *, method: str = "GET", host: str | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Return status, headers and body of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    named = {} if host is None else {"Host": host}
    connection.request(
        method, path, headers={**named, **{name.replace("_", "-"): value for name, value in headers.items()}}
    )
    response = connection.getresponse()
    found = response.status, response.headers, response.read()
    connection.close()
    return found


def document(server: WatchServer, path: str) -> dict[str, Any]:
    """Return a document."""
    status, headers, body = get(server, path)
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    found: dict[str, Any] = json.loads(body)
    return found


def problem(server: WatchServer, path: str, status: int) -> str:
    """Return the problem that a response states."""
    found, _, body = get(server, path)
    assert found == status
    return str(json.loads(body)["problem"])


class Client:
    """Reads a stream."""

    def __init__(self, server: WatchServer, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        self._connection.request("GET", path)
        self.response = self._connection.getresponse()

    def line(self) -> str:
        """Return the next line that is not empty."""
        while True:
            line = self.response.readline()
            assert line, "the stream has ended"
            if line.strip():
                return line.decode().rstrip("\n")

    def event(self) -> dict[str, Any]:
        """Return the next document."""
        while True:
            line = self.line()
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def open_stream(server: WatchServer) -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def opened(path: str) -> Client:
        clients.append(Client(server, path))
        return clients[-1]

    yield opened
    for client in clients:
        client.close()


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_page_and_its_files(server: WatchServer) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/vendor/vendor.css", "text/css"),
    ):
        status, headers, _ = get(server, path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    _, headers, _ = get(server, "/page/app.js")
    assert get(server, "/page/app.js", If_None_Match=headers["ETag"])[0] == 304


@pytest.mark.parametrize(
    "path",
    [
        "/page/../secret.js", "/page/%2e%2e/secret.js", "/page/..%2fsecret.js", "/page//etc/passwd",
        "/page/package.json", "/page/vendor", "/page/", "/favicon.ico", "/api/view/other", "/api/stream/other",
        "/api/view/", "/api",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server: WatchServer, path: str) -> None:
    status, headers, body = get(server, path)
    assert (status, b"secret" in body) == (404, False)
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["/", "/page/app.js", "/api/view/fleet", "/api/view/run?run=x", "/other", "/api/view/run"]
)
def test_every_response_has_the_headers(server: WatchServer, path: str) -> None:
    headers = get(server, path)[1]
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-cache"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:1", 200), ("localhost:8470", 200), ("LOCALHOST", 200), ("[::1]:8470", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:8470", 421), ("", 421),
        ("10.0.0.1", 421), ("[::2]", 421),
    ],
)  # fmt: skip
def test_foreign_names_are_refused(server: WatchServer, host: str, status: int) -> None:
    for path in ("/", "/api/view/fleet", "/api/stream/other"):
        assert (get(server, path, host=host)[0] == 421) == (status == 421)


def test_a_server_for_other_machines_has_their_names_for_it(history: History, page: Path) -> None:
    with WatchServer(history, host="0.0.0.0", port=0, page=page) as made:
        assert get(made, "/", host="192.168.1.7:8470")[0] == 200
        assert get(made, "/", host=socket.gethostname())[0] == 200
        assert get(made, "/", host="evil.example")[0] == 421


def test_another_site_cannot_read_it(server: WatchServer) -> None:
    assert get(server, "/api/view/fleet", Sec_Fetch_Site="cross-site")[0] == 403
    assert get(server, "/", Sec_Fetch_Site="cross-site")[0] == 200  # a link to it, for example of Grafana
    assert get(server, "/api/view/fleet", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(server: WatchServer, method: str) -> None:
    for path in ("/", "/api/view/fleet", "/api/stream/fleet", "/page/app.js"):
        assert get(server, path, method=method)[0] == 405


@pytest.mark.parametrize(
    "query",
    [
        "fleet?run=run-1", "run", "run?run=", "run?run=a&run=b", "decision?run=run-1", "fleet?at=x", "fleet?at=-1",
        "fleet?at=1e3", "fleet?at=9999999999999999", "fleet?at=1&at=2", "fleet?after=", "fleet?other=1",
        "fleet?at=%D9%A1", f"run?run={'a' * 1_001}",
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused(server: WatchServer, query: str) -> None:
    assert "expected" in (text := problem(server, f"/api/view/{query}", 400)) or "parameters" in text


def test_a_stream_has_no_past(server: WatchServer) -> None:
    assert "parameters, each once: none" in problem(server, "/api/stream/fleet?at=5", 400)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_ids_are_unknown(server: WatchServer, name: str) -> None:
    for way in ("view", "stream"):
        assert "there is no run" in problem(server, f"/api/{way}/run?{urlencode({'run': name})}", 404)
        query = urlencode({"run": "run-1", "decision": name})
        assert "has no decision" in problem(server, f"/api/{way}/decision?{query}", 404)
    assert get(server, f"/api/view/{quote(name)}")[0] in (400, 404)


def test_documents_are_those_of_the_views(server: WatchServer, history: History) -> None:
    decision_id = watched.DECISION_ID
    query = urlencode({"run": "run-1", "decision": decision_id})
    for path, made in (
        ("fleet", views.fleet(history)),
        ("run?run=run-1", views.run(history, "run-1")),
        (f"decision?{query}", views.decision(history, "run-1", decision_id)),
        ("policy", views.policy(history)),
    ):
        assert document(server, f"/api/view/{path}") == json.loads(json.dumps(made))
    assert document(server, "/api/view/fleet?at=1500")["runs"][0]["decisions"] == 0
    assert document(server, "/api/view/fleet?after=2")["runs"] == []
    assert len(document(server, "/api/view/installation")["topics"]) == 16


def test_documents_are_compressed(server: WatchServer) -> None:
    _, headers, body = get(server, "/api/view/installation", Accept_Encoding="gzip")
    assert (headers["Content-Encoding"], body[:2]) == ("gzip", b"\x1f\x8b")


def test_json_has_no_numbers_that_are_none() -> None:
    assert to_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}}) == b'{"a":[null,1.5],"b":{"c":null}}'


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


def test_a_port_in_use_is_named(server: WatchServer, history: History) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1:{server.port} .*choose another --port"):
        WatchServer(history, port=server.port).start()


def test_an_address_that_is_none_is_named(history: History) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on no"):
        WatchServer(history, host="no.such.host.invalid", port=0).start()


def test_it_stops_at_once_while_streams_are_open(history: History, page: Path) -> None:
    with WatchServer(history, port=0, page=page) as made:
        clients = [Client(made, "/api/stream/fleet") for _ in range(3)]
        for client in clients:
            client.event()
        began = time.monotonic()
    assert time.monotonic() - began < 3
    history.take([])  # the server no longer listens to it
    for client in clients:
        client.close()
