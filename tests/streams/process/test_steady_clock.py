"""The steady clock passes with real time whatever the wall clock does, and comes back to it slowly."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tamiyo.streams.process import steady_clock
from tamiyo.streams.process.steady_clock import SteadyClock

BEGAN_S = 1_700_000_000
HOUR_S = 3_600


class Machine:
    """A wall clock and a monotonic clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_s, self.monotonic_s = float(BEGAN_S), 5.0
        clocks: Any = SimpleNamespace(
            time_ns=lambda: round(self.wall_s * 1e9), monotonic_ns=lambda: round(self.monotonic_s * 1e9)
        )
        monkeypatch.setattr(steady_clock, "time", clocks)

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_it_is_the_wall_clock_while_that_is_not_set(machine: Machine) -> None:
    clock = SteadyClock()
    for _ in range(100):
        machine.wait(7.3)
        assert abs(clock.time_ms() - 1000 * machine.wall_s) < 2


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 86_400, -86_400])
def test_a_jump_changes_no_duration_by_more_than_a_tenth(machine: Machine, jump_s: int) -> None:
    clock = SteadyClock()
    before = clock.time_ms()
    machine.wall_s += jump_s
    assert clock.time_ms() == before
    machine.wait(300)
    passed = clock.time_ms() - before
    assert passed == 330_000 if jump_s > 0 else passed == 270_000


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
def test_it_comes_back_to_the_wall_clock_and_never_goes_back(machine: Machine, jump_s: int) -> None:
    clock = SteadyClock()
    machine.wall_s += jump_s
    times = [clock.time_ms()]
    for _ in range(10 * HOUR_S // 60):
        machine.wait(60)
        times.append(clock.time_ms())
    assert times == sorted(set(times))
    assert abs(times[-1] - 1000 * machine.wall_s) < 100


def test_the_processs_clock_is_near_the_wall_clock() -> None:
    assert abs(steady_clock.time_ms() - 1000 * time.time()) < 60_000
