"""A server of the page, with a small page and a history of one run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.server import WatchServer
from tests.streams.watch import watched
from tests.streams.watch.served import Client


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


@pytest.fixture
def open_stream(server: WatchServer) -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def opened(path: str) -> Client:
        clients.append(Client(server, path))
        return clients[-1]

    yield opened
    for client in clients:
        client.close()
