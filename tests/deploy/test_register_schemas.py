"""deploy/register_schemas.py against a registry that remembers what it was told."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType

import pytest

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.topics import CATALOGUE
from tests.deploy.support import ROOT

REGISTRY_HOME = os.environ.get("REGISTRY_HOME")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("register_schemas", ROOT / "deploy" / "register_schemas.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Registry(HTTPServer):
    """Registers everything but one subject, which it calls incompatible."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.schemas: dict[str, object] = {}
        self.compatibility: dict[str, str] = {}
        self.refused = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/apis/ccompat/v7"


class Answer(BaseHTTPRequestHandler):
    """Speaks as much of the Confluent API as is used."""

    server: Registry

    def do_POST(self) -> None:
        subject = self.path.split("/subjects/")[1].removesuffix("/versions")
        body = self._body()
        if subject == self.server.refused:
            self._answer(409, {"error_code": 409, "message": "incompatible with an earlier schema"})
            return
        self.server.schemas.setdefault(subject, json.loads(body["schema"]))
        self._answer(200, {"id": 1 + list(self.server.schemas).index(subject)})

    def do_PUT(self) -> None:
        self.server.compatibility[self.path.split("/config/")[1]] = self._body()["compatibility"]
        self._answer(200, {})

    def _body(self) -> dict[str, str]:
        loaded: dict[str, str] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return loaded

    def _answer(self, status: int, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_registers_every_topic_under_its_subject(
    script: ModuleType, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([registry.url]) == 0
    assert script.main([f"{registry.url}/"]) == 0  # again: nothing new, nothing wrong
    assert registry.schemas == {f"{topic.name}-value": avro_schema(topic.record) for topic in CATALOGUE}
    assert registry.compatibility == dict.fromkeys(registry.schemas, "BACKWARD_TRANSITIVE")
    assert "tamiyo.adaptation.decisions-value: schema " in capsys.readouterr().out


def test_names_the_topics_of_the_installation(
    script: ModuleType, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", "blue.")
    assert script.main([registry.url]) == 0
    assert all(subject.startswith("blue.") for subject in registry.schemas)


def test_an_incompatible_schema_stops_the_deployment(
    script: ModuleType, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.refused = "tamiyo.rewards-value"
    assert script.main([registry.url]) == 1
    complaint = capsys.readouterr().err
    assert "tamiyo.rewards-value" in complaint
    assert "incompatible" in complaint


def test_a_registry_that_is_away_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with Registry() as server:
        url = server.url
    assert script.main([url]) == 1
    assert url in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["ftp://registry"], ["http://a", "http://b"]])
def test_says_how_it_is_used(script: ModuleType, arguments: list[str]) -> None:
    assert script.main(arguments) == 2


@pytest.mark.skipif(not REGISTRY_HOME, reason="REGISTRY_HOME names no schema registry to start")
def test_a_real_registry_takes_them_and_refuses_what_breaks_readers(script: ModuleType) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [f"{REGISTRY_HOME}/start", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
        wait_for(f"{url}/subjects", process)
        ids = script.register(url)
        assert len(ids) == len(CATALOGUE)
        assert script.register(url) == ids
        schema = avro_schema(CATALOGUE[0].record)
        schema["fields"].append({"name": "new", "type": "long"})  # no default: an older record cannot be read
        with pytest.raises(urllib.error.HTTPError) as refusal:
            script.call("POST", f"{url}/subjects/{next(iter(ids))}/versions", {"schema": json.dumps(schema)})
        assert refusal.value.code == 409
        refusal.value.close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return when `url` answers; a minute is for a machine that does much else."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the registry did not come up")
