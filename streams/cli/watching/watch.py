"""`tamiyo watch`: a page that shows what an installation, or a recording, does."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import Bootstrap, examples
from tamiyo.streams.cli.options.durations import time_ms
from tamiyo.streams.watch import PORT

if TYPE_CHECKING:
    from tamiyo.streams.watch.feeds import Feed
    from tamiyo.streams.watch.history import History
    from tamiyo.streams.watch.server import WatchServer

WatchPort = Annotated[
    int,
    typer.Option("--port", min=0, max=65535, metavar="PORT", help="Port of the page; 0: any free port."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples(
            "tamiyo watch",
            "tamiyo watch --since 2d --open -b kafka-1:9092",
            "tamiyo watch recordings/monday --port 0",
        ),
    )(watch)


def watch(
    recording: Annotated[
        Path | None, typer.Argument(help="Folder that `tamiyo record` has made. [default: the topics]")
    ] = None,
    topics: Annotated[bool, typer.Option("--topics", help="Watch the topics; the default without RECORDING.")] = False,
    port: WatchPort = PORT,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Read topics from this time on: a duration back such as 2d, or 2026-05-01T10:00 (UTC); topologies, "
            "policies and orders whole. [default: all]",
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. The page has no login: another one than this machine's own lets everybody read "
            "it who reaches that address.",
        ),
    ] = "127.0.0.1",
    bootstrap: Bootstrap = None,
) -> None:
    """Serve a page of runs, decisions, policies and stages, on this machine, until Ctrl-C.

    It reads the topics from their beginning and then follows them, or it reads a recording, with a slider over its
    time. It only reads: nothing can be changed from the page, and nothing leaves this machine.
    """
    from tamiyo.streams.process.interrupts import stoppable
    from tamiyo.streams.watch.history import History

    history = History()
    feed = _recording(history, recording, topics, since) if recording else _topics(history, bootstrap, since)
    with stoppable() as stopped, feed, serving(history, host, port) as server:
        _print(f"{history.source.name} is on {server.url} until Ctrl-C")
        if host not in ("127.0.0.1", "localhost", "::1"):
            _print(f"everybody who reaches {host} can read it: there is no login")
        if open_page:
            open_in_browser(server.url)
        report_until(stopped, history)


def _recording(history: "History", folder: Path, topics: bool, since: str | None) -> "Feed":
    from tamiyo.streams.watch.feeds import RecordingFeed

    if topics:
        raise ConfigurationError("--topics: expected the topics or a RECORDING, got both")
    if since is not None:
        raise ConfigurationError("--since: a recording is read whole; leave it out")
    return RecordingFeed(history, folder)


def _topics(history: "History", bootstrap: str | None, since: str | None) -> "Feed":
    from tamiyo.streams.watch.feeds import TopicFeed

    since_ms = time_ms("--since", since)
    return TopicFeed(history, options.connected_kafka(bootstrap), options.names(), since_ms=since_ms)


@contextmanager
def serving(history: "History", host: str, port: int) -> Iterator["WatchServer"]:
    """Serve the page within the block; raises ConfigurationError where the port is in use."""
    from tamiyo.streams.watch.server import WatchServer

    with WatchServer(history, host=host, port=port) as server:
        yield server


def open_in_browser(url: str) -> None:
    """Open the page, and print where to open it where there is no browser."""
    import webbrowser

    if not webbrowser.open(url):
        _print(f"there is no browser here: open {url} in one")


def has_screen() -> bool:
    """Return whether somebody sits before this machine: a browser without a screen would take the terminal."""
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(each) for each in ("DISPLAY", "WAYLAND_DISPLAY"))
    return screen and sys.stderr.isatty() and not os.environ.get("SSH_CONNECTION")


def report_until(stopped: threading.Event, history: "History") -> None:
    """Print problems of the source, each once, until Ctrl-C."""
    known: str | None = None
    while not stopped.wait(0.2):
        problem = history.source.problem
        if problem != known:
            _print(problem if problem is not None else "reading goes on")
            known = problem


def _print(text: str) -> None:
    sys.stderr.write(f"tamiyo: {printable(text)}\n")
    sys.stderr.flush()
