"""`tamiyo watch` serves a page until Ctrl-C; what it cannot read or serve is one clear line."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tamiyo.streams.cli.watching import watch as module
from tamiyo.streams.cli.watching.demo_page import demo_page
from tests.streams.cli.test_cli import run
from tests.streams.watch import watched
from tests.support.kafka_log import KafkaLog
from tests.support.recordings import make_recording, message


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    folder = tmp_path / "monday"
    make_recording(folder, [message(MODEL_PERFORMANCE.name, 1, encode(watched.performance(10)))])
    return folder


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; yield its process and the page's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tamiyo.streams.cli", "watch", *arguments, "--port", "0"],
        env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"is on (http://127\.0\.0\.1:\d+/) until Ctrl-C", line)
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def fleet(url: str) -> dict:  # type: ignore[type-arg]
    with urllib.request.urlopen(f"{url}api/view/fleet", timeout=20) as response:
        return dict(json.load(response))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_is_served_until_it_is_stopped(recording: Path, stop: signal.Signals) -> None:
    with served(str(recording)) as (process, url):
        assert fleet(url)["source"]["name"] == "monday"
        process.send_signal(stop)
        out, errors = process.communicate(timeout=20)
        assert (process.returncode, out, errors) == (0, "", "")


def test_topics_are_served(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    kafka_log.publish(MODEL_PERFORMANCE, [watched.performance(10)])
    with served("--topics", "-b", kafka.bootstrap_servers, TAMIYO_TOPIC_PREFIX=names.prefix) as (_, url):
        with urllib.request.urlopen(f"{url}api/stream/run?run=run-1", timeout=20) as stream:
            data = next(line for line in stream if line.startswith(b"data: "))
        assert json.loads(data[6:])["series"]["step"] == [10]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing"], "missing is not a recording: it has no manifest.json"),
        (["RECORDING", "--topics"], "--topics: expected the topics or a RECORDING, got both"),
        (["RECORDING", "--since", "2h"], "--since: a recording is read whole; leave it out"),
        (["--since", "yesterday"], "--since yesterday: expected a time like 2026-05-01T10:00"),
        (["-b", "127.0.0.1:1"], "127.0.0.1:1"),
        (["RECORDING", "--host", "999.1.1.1"], "cannot listen on 999.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path, arguments: list[str],
    expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("TAMIYO_COMMAND_PATIENCE_S", "0.3")
    monkeypatch.chdir(recording.parent)
    given = [str(recording) if each == "RECORDING" else each for each in arguments]
    assert run(monkeypatch, "watch", "--port", "0", *given) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in last
    assert last.startswith("tamiyo: ")


def test_a_port_in_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(monkeypatch, "watch", str(recording), "--port", str(port)) == 1
    assert f"cannot listen on 127.0.0.1:{port} (address already in use)" in capsys.readouterr().err.lower()


def test_a_browser_is_opened_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path
) -> None:
    opened: list[str] = []

    def opens(url: str) -> bool:
        opened.append(url)
        return False

    monkeypatch.setattr("webbrowser.open", opens)
    monkeypatch.setattr(module, "report_until", lambda stopped, history: None)
    assert run(monkeypatch, "watch", str(recording), "--port", "0") == 0
    assert opened == []
    assert run(monkeypatch, "watch", str(recording), "--port", "0", "--open") == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", opened[0])
    assert f"there is no browser here: open {opened[0]} in one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "terminal", "expected"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"}, True, False),
        ({}, True, False),
    ],
)
def test_the_demo_opens_its_page_where_there_is_a_screen(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], terminal: bool, expected: bool
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    opened: list[str] = []
    monkeypatch.setattr("tamiyo.streams.cli.watching.demo_page.open_in_browser", opened.append)
    with demo_page(Console(file=io.StringIO()), 0) as page:
        assert opened == ([page.url] if expected else [])


def test_a_wider_address_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: Path
) -> None:
    monkeypatch.setattr(module, "report_until", lambda stopped, history: None)
    assert run(monkeypatch, "watch", str(recording), "--port", "0", "--host", "0.0.0.0") == 0
    assert "everybody who reaches 0.0.0.0 can read it: there is no login" in capsys.readouterr().err


def test_the_demo_needs_watch_for_its_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "demo", "--port", "0") == 1
    assert "--port: it is the port of the page; add --watch" in capsys.readouterr().err


def test_the_page_of_the_demo_shows_its_embedded_broker(capsys: pytest.CaptureFixture[str]) -> None:
    with demo_page(Console(), 0) as page:
        log = KafkaLog(page.kafka, TopicNames(prefix=""))
        log.publish(MODEL_PERFORMANCE, [watched.performance(10)])
        with urllib.request.urlopen(f"{page.url}api/stream/fleet", timeout=20) as stream:
            seen = (line for line in stream if line.startswith(b"data: "))
            assert next(data for data in seen if b'"run_id":"run-1"' in data)
        log.close()
    assert f"watch it on {page.url}" in capsys.readouterr().out
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigurationError, match="--port"),
        demo_page(Console(), taken.getsockname()[1]),
    ):
        pass
