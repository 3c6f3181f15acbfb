"""The fleet restarts processes that end, keeps stopped ones down, and ends all with its block."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tamiyo.evaluation.common.fleet import Fleet, worker_arguments

# The fleet handles all commands alike, so a command without torch does: one that runs until stopped, one that ends.
LONG = ["broker"]
SHORT = ["topics", "list"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path, {}) as running:
        yield running


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {timeout_s:.0f} s"
        time.sleep(0.05)


def test_a_killed_process_is_restarted_and_its_exit_recorded(fleet: Fleet) -> None:
    fleet.add("one", LONG, 1)
    first = fleet.pid("one")
    assert first is not None

    fleet.kill("one", restart_after_s=0.1)

    eventually(lambda: fleet.pid("one") not in (None, first))
    assert [(end.name, end.code, end.meant) for end in fleet.ends] == [("one", -signal.SIGKILL, True)]
    assert fleet.restarts["one"] == 1


def test_a_process_that_ends_by_itself_is_restarted_and_recorded_as_such(fleet: Fleet) -> None:
    fleet.add("one", SHORT, 1)

    eventually(lambda: fleet.restarts["one"] > 0)

    assert (fleet.ends[0].code, fleet.ends[0].meant) == (0, False)
    assert "protected layers" in fleet.ends[0].last_words


def test_a_stopped_process_stays_down_until_it_is_started(fleet: Fleet) -> None:
    fleet.add("one", LONG, 1)
    eventually(lambda: "export" in fleet.last_words("one"))

    fleet.stop("one")

    time.sleep(1.5)  # longer than a restart waits
    assert not fleet.alive("one")
    assert [(end.code, end.meant) for end in fleet.ends] == [(0, True)]
    fleet.start("one")
    assert fleet.alive("one")
    assert (fleet.folder / "one").is_dir()


def test_a_frozen_process_is_alive_and_not_ready_and_can_still_be_killed(fleet: Fleet) -> None:
    fleet.add("one", LONG, 1)
    fleet.pause("one")
    pid = fleet.pid("one")
    assert pid is not None
    eventually(lambda: Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "T")
    assert fleet.alive("one")
    assert not fleet.ready("one")

    fleet.kill("one", signal.SIGTERM, restart_after_s=None)

    assert not fleet.alive("one")


def test_nothing_outlives_the_block(tmp_path: Path) -> None:
    with Fleet(tmp_path, {}) as fleet:
        fleet.add("one", LONG, 1)
        fleet.add("two", LONG, 2)
        fleet.pause("two")
        pids = [pid for _, pid in fleet.running()]
        assert len(pids) == 2

    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_gets_its_stages_and_its_port() -> None:
    assert worker_arguments(["intake", "windows"], 9100) == [
        "worker", "--no-supervise", "--http-port", "9100", "--stage", "intake", "--stage", "windows",
    ]  # fmt: skip
