"""The meter and the governor."""

import pytest

from tamiyo.host._probes.overhead import SLOWDOWNS, Governor, OverheadMeter, step_budget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> OverheadMeter:
    return OverheadMeter(clock)


def governor(meter: OverheadMeter, budget: float = 0.08) -> Governor:
    return Governor(meter, budget, {Governor.FRAMES: 10, "growth": 100, "contribution": 50})


def spend(meter: OverheadMeter, clock: Clock, seconds: float) -> None:
    meter.enter()
    clock.pass_(seconds)
    meter.leave()


def test_time_is_split_between_training_and_the_sdk(meter: OverheadMeter, clock: Clock) -> None:
    meter.start()
    clock.pass_(9.0)
    spend(meter, clock, 0.5)
    clock.pass_(1.0)
    spend(meter, clock, 0.5)
    assert (meter.training_seconds, meter.sdk_seconds, meter.ratio) == (10.0, 1.0, 0.1)


def test_what_no_hook_has_timed_is_charged_to_the_sdk(meter: OverheadMeter, clock: Clock) -> None:
    meter.charge(1.0)  # before the start nothing counts
    meter.start()
    clock.pass_(9.0)
    spend(meter, clock, 0.5)
    meter.charge(1.0)
    assert (meter.training_seconds, meter.sdk_seconds) == (8.0, 1.5)


def test_nothing_counts_before_the_start_and_after_the_stop(meter: OverheadMeter, clock: Clock) -> None:
    clock.pass_(5.0)
    spend(meter, clock, 1.0)
    assert (meter.training_seconds, meter.sdk_seconds, meter.ratio) == (0.0, 0.0, 0.0)
    meter.start()
    clock.pass_(2.0)
    spend(meter, clock, 1.0)
    meter.stop()
    clock.pass_(5.0)
    spend(meter, clock, 1.0)
    assert (meter.training_seconds, meter.sdk_seconds) == (2.0, 1.0)


def test_nested_hooks_count_once(meter: OverheadMeter, clock: Clock) -> None:
    meter.start()
    meter.enter()
    clock.pass_(1.0)
    spend(meter, clock, 1.0)
    clock.pass_(1.0)
    meter.leave()
    assert (meter.training_seconds, meter.sdk_seconds) == (0.0, 3.0)


def test_what_is_outside_counts_as_neither_even_when_it_fails(meter: OverheadMeter, clock: Clock) -> None:
    meter.start()
    clock.pass_(1.0)
    with meter.outside():
        clock.pass_(100.0)
    with pytest.raises(AttributeError), meter.outside():
        clock.pass_(100.0).validation  # type: ignore[attr-defined] # noqa: B018
    clock.pass_(1.0)
    spend(meter, clock, 0.25)
    assert (meter.training_seconds, meter.sdk_seconds) == (2.0, 0.25)


def test_probes_run_at_their_intervals_while_they_are_cheap(meter: OverheadMeter) -> None:
    chosen = governor(meter)
    due: dict[str, list[int]] = {"frames": [], "growth": [], "contribution": []}
    for step in range(1, 201):
        for probe, steps in due.items():
            if chosen.due(probe, step):
                steps.append(step)
                chosen.spent(probe, step, 1e-6)
        chosen.adjust(1e-3)
    assert due["frames"] == list(range(10, 201, 10))
    assert (due["growth"], due["contribution"]) == ([100, 200], [50, 100, 150, 200])


def test_costly_probes_share_what_frames_leave(meter: OverheadMeter) -> None:
    chosen = governor(meter, budget=0.08)
    chosen.spent("frames", 10, 0.4e-3)  # 4 % of ten steps of 1 ms
    chosen.spent("growth", 10, 4e-3)  # 4 % of a hundred
    chosen.spent("contribution", 10, 2e-3)  # 4 % of fifty: 8 % together, twice what is left
    chosen.adjust(1e-3)
    assert chosen.interval("frames") == 10
    assert chosen.interval("growth") == pytest.approx(200)
    assert chosen.interval("contribution") == pytest.approx(100)


def test_frames_take_three_quarters_of_the_budget_and_become_at_most_twice_as_rare(meter: OverheadMeter) -> None:
    chosen = governor(meter, budget=0.08)
    chosen.spent("frames", 10, 0.9e-3)  # 9 %: half as much again as the 6 % they may take
    chosen.adjust(1e-3)
    assert chosen.interval("frames") == pytest.approx(15)
    for step in (20, 30, 40):
        chosen.spent("frames", step, 1.0)
    chosen.adjust(1e-3)
    assert chosen.interval("frames") == 20


def test_one_slow_run_does_not_move_the_median(meter: OverheadMeter) -> None:
    chosen = governor(meter)
    for step, cost in ((100, 1e-3), (200, 5.0), (300, 1e-3)):
        chosen.spent("growth", step, cost)
    chosen.adjust(1e-3)
    assert chosen.interval("growth") == 100


def test_overhead_above_the_budget_lengthens_intervals_by_the_square_of_the_excess(
    meter: OverheadMeter, clock: Clock
) -> None:
    chosen = governor(meter, budget=0.08)
    meter.start()
    clock.pass_(1.0)
    spend(meter, clock, 0.16)  # twice the budget, though no probe is dear
    chosen.adjust(1e-3)
    assert chosen.interval("growth") == pytest.approx(400)
    assert chosen.interval("frames") == pytest.approx(20)


def test_the_work_of_every_step_reduces_the_budget(meter: OverheadMeter, clock: Clock) -> None:
    chosen = governor(meter, budget=0.08)
    meter.start()
    clock.pass_(1.0)
    spend(meter, clock, 0.02)  # 2 % in every step: 6 % left
    chosen.spent("growth", 100, 0.012)  # 12 % of a hundred steps of 1 ms, of which meter and probes agree
    spend(meter, clock, 0.012)
    chosen.adjust(1e-3)
    assert chosen.interval("growth") == pytest.approx(100 * 0.12 / 0.06)


def test_shorter_steps_may_spend_a_larger_share() -> None:
    assert [step_budget(0.02, seconds) for seconds in (1.0, 0.005, 0.0025)] == pytest.approx(
        [0.02, 0.02, 0.02 * 2**0.8]
    )
    assert [step_budget(budget, 1e-5) for budget in (0.02, 0.9)] == [0.06, 0.9]


def test_what_makes_sampled_steps_slower_counts_as_the_frames_cost(meter: OverheadMeter, clock: Clock) -> None:
    chosen = governor(meter, budget=0.08)
    chosen.spent("frames", 10, 0.3e-3)  # 3 % of ten steps of 1 ms
    for index in range(SLOWDOWNS - 1):
        chosen.slowed(5.0 if index == 7 else 0.6e-3)
    chosen.adjust(1e-3)
    assert chosen.interval("frames") == 10  # too few to tell
    chosen.slowed(0.6e-3)
    chosen.adjust(1e-3)
    assert chosen.interval("frames") == pytest.approx(15)  # 9 %, and they may take 6 %


def test_untimed_costs_of_the_frames_count_against_the_budget(meter: OverheadMeter, clock: Clock) -> None:
    chosen = governor(meter, budget=0.08)
    meter.start()
    clock.pass_(1.0)
    spend(meter, clock, 0.08)
    for _ in range(SLOWDOWNS - 1 + 10):
        chosen.slowed(8e-3)
    chosen.adjust(1e-3)
    assert chosen.interval("growth") == pytest.approx(400)  # the meter has the budget's 8 %, and ten frames as much
    chosen.slowed(-1.0)
    assert chosen.untimed_seconds == 8e-3
