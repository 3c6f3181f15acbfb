"""The server of the page: its files, documents and headers; hostile requests."""

import json
import socket
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.watch import views
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.server import WatchServer, to_json
from tests.streams.watch import watched
from tests.streams.watch.served import Client, document, get, problem

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
