"""The supervisor: what it restarts, what it does not, and that no child outlives it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.process import supervisor as module
from tamiyo.streams.process.supervisor import Supervisor
from tamiyo.streams.settings import SupervisorSettings

ROOT = Path(__file__).parents[3]
QUICK = {"TAMIYO_SUPERVISOR_FIRST_BACKOFF_S": "0.05", "TAMIYO_SUPERVISOR_STOP_TIMEOUT_S": "1"}

# Each start exits with the next status and appends a line to a file; -9 is a signal.
ENDS = """
import os, pathlib, sys
starts = pathlib.Path(sys.argv[1])
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
status = [int(each) for each in sys.argv[2].split(",")][number]
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

# Runs until SIGTERM, which `stubborn` ignores.
RUNS = """
import os, pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in sys.argv else stop)
print("running", os.getpid(), flush=True)
time.sleep(60)
"""


def ends(folder: Path, statuses: str) -> tuple[int, int, str]:
    """Return the supervisor's status, how often it started its child, and what it logged."""
    starts = folder / "starts"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.streams.process.supervised", ENDS, str(starts), statuses],
        cwd=ROOT, env={**os.environ, **QUICK}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    pids = starts.read_text().split()
    assert len(set(pids)) == len(pids)
    return ended.returncode, len(pids), ended.stderr


@pytest.mark.parametrize(
    ("statuses", "status", "starts"),
    [
        ("0", 0, 1),  # stopped by somebody else
        ("1", 1, 1),  # a setting is wrong
        ("2", 2, 1),
        ("70,75,-9,0", 0, 4),
        ("75,1,1,0", 0, 4),  # it has run before: an outage passes
        ("75,2", 2, 2),
    ],
)
def test_a_process_is_restarted_where_that_may_help(tmp_path: Path, statuses: str, status: int, starts: int) -> None:
    ended, started, logged = ends(tmp_path, statuses)
    assert (ended, started) == (status, starts), logged
    assert logged.count("process exited, restarting") == starts - 1


def test_each_restart_logs_its_reason(tmp_path: Path) -> None:
    _, _, logged = ends(tmp_path, "70,75,-11,0")
    lines = [line for line in logged.splitlines() if "restarting" in line]
    for line, words in zip(lines, ("a bug", "Kafka or the store failed", "killed by SIGSEGV"), strict=True):
        assert words in line
    assert '"restart": 3' in lines[2]


def test_waits_double_up_to_a_limit_and_half_of_them_is_random() -> None:
    settings = SupervisorSettings(first_backoff_s=1, last_backoff_s=30)
    longest = Supervisor([], settings, uniform=lambda: 1.0)
    assert [longest.delay(failures) for failures in (1, 2, 3, 5, 6, 7, 5000)] == [1, 2, 4, 16, 30, 30, 30]
    shortest = Supervisor([], settings, uniform=lambda: 0.0)
    assert [shortest.delay(failures) for failures in (1, 2, 9)] == [0.5, 1, 15]


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signal_handlers")
def test_a_long_run_resets_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SupervisorSettings(first_backoff_s=1, last_backoff_s=30, reset_after_s=100)
    supervisor = Supervisor([], settings, uniform=lambda: 1.0)
    runs = iter([(10, 75), (99, 75), (100, 75), (10, 75), (10, 0)])
    now, waits = 0, list[float]()

    def run_once() -> int:
        nonlocal now
        duration, status = next(runs)
        now += duration
        return status

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(supervisor, "_run_once", run_once)
    monkeypatch.setattr(supervisor._stopped, "wait", waits.append)
    assert supervisor.run() == 0
    assert waits == [1, 2, 1, 2]


Start = Callable[..., tuple["subprocess.Popen[str]", int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a supervisor of a child that runs on; returns it and the child's process id."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> tuple["subprocess.Popen[str]", int]:
        command = [sys.executable, "-m", "tests.streams.process.supervised", RUNS, str(tmp_path / "state"), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **QUICK}, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        word, pid = process.stdout.readline().split()
        assert word == "running"
        return process, int(pid)

    yield begin
    for each in running:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


def gone(pid: int, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True  # dead, and not yet reaped by its new parent
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_passed_on_and_waited_for(start: Start, tmp_path: Path, number: int) -> None:
    supervisor, child = start()
    supervisor.send_signal(number)
    assert supervisor.wait(10) == 0
    assert (tmp_path / "state").read_text() == "stopped"
    assert gone(child)


def test_a_child_that_does_not_stop_is_killed(start: Start) -> None:
    supervisor, child = start("stubborn")
    supervisor.terminate()
    assert supervisor.wait(10) == 128 + signal.SIGKILL
    assert gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the child of a process that was killed")
def test_a_killed_supervisor_leaves_no_orphan(start: Start) -> None:
    supervisor, child = start()
    supervisor.kill()
    assert gone(child)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ready(port: int, timeout_s: float = 60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    return False


@pytest.mark.flow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the children from /proc")
def test_a_killed_worker_is_restarted(kafka: KafkaSettings, names: TopicNames, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        **QUICK,
        "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "TAMIYO_TOPIC_PREFIX": names.prefix,
        "TAMIYO_SUPERVISOR_STOP_TIMEOUT_S": "15",
    }
    log = tmp_path / "log"
    command = [sys.executable, "-m", "tamiyo.streams.cli", "worker", "--stage", "intake", "--http-port", str(port)]
    with log.open("wb") as output:
        supervisor = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        assert ready(port), log.read_text()
        (first,) = children(supervisor.pid)
        os.kill(first, signal.SIGKILL)
        assert gone(first)
        assert ready(port), log.read_text()
        (second,) = children(supervisor.pid)
        assert second != first
        supervisor.terminate()
        assert supervisor.wait(20) == 0, log.read_text()
        assert gone(second)
    finally:
        supervisor.kill()
        supervisor.wait()
    assert "killed by SIGKILL" in log.read_text()


def test_a_missing_broker_ends_it_with_1(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    environment = {**os.environ, "TAMIYO_SUPERVISOR_FIRST_BACKOFF_S": "0.05", "TAMIYO_WORKER_STARTUP_TIMEOUT_S": "3"}
    ended = subprocess.run(
        [sys.executable, "-m", "tamiyo.streams.cli", "worker", "--stage", "intake", "-b", f"127.0.0.1:{port}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert "no connection to Kafka yet" in ended.stderr
    assert "set TAMIYO_KAFKA_BOOTSTRAP_SERVERS" in ended.stderr
    assert "restarting" not in ended.stderr
