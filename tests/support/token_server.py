"""A token endpoint of OAuth 2.0 in this process, whose tokens expire soon."""

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl


def unsigned_token(subject: str, lifetime_s: float) -> str:
    """Return a JWT without a signature, as Kafka's unsecured validator takes it."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + lifetime_s})
    encoded = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return f"{'.'.join(encoded)}."


def user_token() -> tuple[str, float]:
    """Return a token of `user`, as TAMIYO_KAFKA_OAUTH_TOKEN_PROVIDER's function does."""
    return unsigned_token("user", 3600), time.time() + 3600


class TokenServer(ThreadingHTTPServer):
    """Gives tokens to clients with the right secret; `with` starts and stops it."""

    daemon_threads = True

    def __init__(self, secret: str, *, lifetime_s: float = 3600.0, port: int = 0, tls: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.url = f"http{'s' if tls else ''}://localhost:{self.server_port}/token"
        self.secret = secret
        self.lifetime_s = lifetime_s
        self.subject: str | None = None
        """Whom the tokens are for; None: the client."""
        self.requests: list[dict[str, str]] = []
        """The form of every request, in order, with the client as `client`."""
        self.failure: tuple[int, bytes] | None = None
        """Status and body of every response, while set."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: TokenServer

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        login = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
        client, _, secret = login.partition(":")
        self.server.requests.append({**dict(parse_qsl(form)), "client": client})
        if self.server.failure is not None:
            self._respond(*self.server.failure)
        elif secret != self.server.secret:
            error = {"error": "invalid_client", "error_description": f"no client {client} with the secret {secret}"}
            self._respond(401, json.dumps(error).encode())
        else:
            lifetime_s = self.server.lifetime_s
            token = {
                "access_token": unsigned_token(
                    client if self.server.subject is None else self.server.subject, lifetime_s
                ),
                "expires_in": lifetime_s,
            }
            self._respond(200, json.dumps({**token, "token_type": "Bearer"}).encode())

    def _respond(self, status: int, body: bytes) -> None:
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
