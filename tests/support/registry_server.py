"""A schema registry in this process that can be made to fail and records its requests."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit


class RegistryServer(ThreadingHTTPServer):
    """The part of Confluent's API that Tamiyo uses; `with` starts and stops it."""

    daemon_threads = True

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.scheme = "http" if tls is None else "https"
        self.subjects: dict[str, list[int]] = {}
        """Schema ids of each subject, by version."""
        self.removed: dict[str, list[int]] = {}
        """Subjects that were removed, but not for good."""
        self.schemas: dict[int, str] = {}
        self.compatibility: dict[str, str] = {}
        self.requests: list[str] = []
        """Method and path of every request, in order."""
        self.requested = threading.Event()
        """Set by every request."""
        self.authorization: str | None = None
        """That header of the last request."""
        self.failure: tuple[int, bytes] | None = None
        """Status and body of every response, while set."""
        self.location: str | None = None
        """Where the failure redirects to."""
        self._failures_left: int | None = None
        """Requests that still fail; None: all of them, while `failure` is set."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/apis/ccompat/v7"

    def add(self, subject: str, schema: str) -> int:
        """Register a schema; the same text has the same id under every subject."""
        known = [number for number, text in self.schemas.items() if text == schema]
        schema_id = known[0] if known else len(self.schemas) + 1
        self.schemas[schema_id] = schema
        versions = self.subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        return schema_id

    def recover_after(self, requests: int) -> None:
        """Fail for so many further requests, then recover."""
        self._failures_left = requests

    def count_down(self) -> None:
        """Count a request."""
        if self._failures_left is not None:
            self._failures_left -= 1
            if self._failures_left < 0:
                self.failure = self._failures_left = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Ignore it: a client that does not trust the certificate closes the connection."""


class _Handler(BaseHTTPRequestHandler):
    server: RegistryServer

    def do_GET(self) -> None:
        place = self._place()
        if place[0] == "subjects":
            versions = self.server.subjects.get(place[1], [])
            self._respond(list(range(1, len(versions) + 1)) if versions else None)
        elif place[0] == "config":
            level = self.server.compatibility.get(place[1])
            self._respond(None if level is None else {"compatibilityLevel": level})
        else:
            text = self.server.schemas.get(int(place[2]))
            self._respond(None if text is None else {"schema": text})

    def do_POST(self) -> None:
        place, schema = self._place(), self._body().get("schema", "")
        if place[0] == "compatibility":
            self._respond({"is_compatible": True})
        elif place[-1] == "versions":
            self._respond({"id": self.server.add(place[1], schema)})
        else:
            ids = self.server.subjects.get(place[1], [])
            self._respond(next(({"id": each} for each in ids if self.server.schemas[each] == schema), None))

    def do_DELETE(self) -> None:
        place = self._place()
        known = self.server.removed if "permanent=true" in self.path else self.server.subjects
        versions = known.pop(place[1], None)
        if versions is not None and known is self.server.subjects:
            self.server.removed[place[1]] = versions
            self.server.compatibility.pop(place[1], None)
        self._respond(None if versions is None else list(range(1, len(versions) + 1)))

    def do_PUT(self) -> None:
        place = self._place()
        self.server.compatibility[place[1]] = self._body()["compatibility"]
        self._respond({})

    def _place(self) -> list[str]:
        self.server.count_down()
        self.server.requests.append(f"{self.command} {self.path.removeprefix('/apis/ccompat/v7')}")
        self.server.requested.set()
        self.server.authorization = self.headers["Authorization"]
        return [unquote(each) for each in urlsplit(self.path).path.removeprefix("/apis/ccompat/v7/").split("/")]

    def _body(self) -> dict[str, str]:
        loaded: dict[str, str] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return loaded

    def _respond(self, body: Any) -> None:
        status, data = (404, b'{"error_code": 40401}') if body is None else (200, json.dumps(body).encode())
        status, data = self.server.failure or (status, data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if self.server.location is not None:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
