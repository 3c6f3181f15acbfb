"""Requests to a server of the page, and readers of its streams."""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from tamiyo.streams.watch.server import WatchServer


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


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
