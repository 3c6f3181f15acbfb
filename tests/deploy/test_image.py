"""deploy/Dockerfile, read line by line: pinned, from the constraints, not root, with a health check."""

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.deploy.support import PINNED, ROOT, command_problem, environment_problems

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Return (instruction, arguments) in order, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, _, rest in pairs]


def named(instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions() if name == instruction]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for arguments in named("ENV") for pair in arguments.split())


def test_base_images_are_pinned() -> None:
    bases = [arguments.split()[0] for arguments in named("FROM")]
    assert len(bases) == 2  # the build stage is left behind
    assert len(set(bases)) == 1
    assert PINNED.match(bases[0])
    assert bases[0].startswith("python:3.11.")
    assert "-slim" in bases[0]


def test_installs_the_pipeline_from_the_constraints() -> None:
    (install,) = [run for run in named("RUN") if "pip install" in run]
    assert install.endswith("pip install -c constraints.txt '.[pipeline]'")
    assert (ROOT / "constraints.txt").is_file()


def test_copies_every_package_and_every_file_of_the_build() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = {source for arguments in named("COPY") if "--from" not in arguments for source in arguments.split()[:-1]}
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    assert folders | {"pyproject.toml", "constraints.txt", project["project"]["readme"]} <= copied
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{source}" for source in copied} == {line for line in ignore if line.startswith("!")}


def test_runs_as_a_number_that_is_not_root() -> None:
    users = named("USER")
    assert users == ["10001:10001"]
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_starts_the_program() -> None:
    assert json.loads(named("ENTRYPOINT")[0]) == ["tamiyo"]
    assert command_problem(json.loads(named("CMD")[0])) is None


def test_sets_only_variables_that_the_program_reads() -> None:
    assert environment_problems(environment()) == []
    assert environment()["OMP_NUM_THREADS"] == "1"


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Serve `status` at /healthz on a port of the loopback."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_health_check_follows_healthz(status: int, healthy: bool) -> None:
    (check,) = named("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[:2] == ["python", "-c"]
    with answering(status) as port:
        variables = {**os.environ, "TAMIYO_WORKER_HTTP_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, *command[1:]], env=variables, capture_output=True, timeout=30, check=False
        )
    assert (done.returncode == 0) is healthy


def test_health_check_uses_the_exposed_port() -> None:
    assert named("EXPOSE") == [environment()["TAMIYO_WORKER_HTTP_PORT"]]
