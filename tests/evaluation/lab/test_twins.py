"""Twins are exact: they differ from their run in what they decide differently, and in nothing else."""

import os
import signal
import sys
import time
from typing import Any

import numpy as np
import psutil
import pytest

from tamiyo.evaluation.lab.baselines import AtOnce, Cheapest, Never, baseline, certain
from tamiyo.evaluation.lab.run import Run, RunResult
from tamiyo.evaluation.lab.twins import TwinError, forked, twin
from tests.evaluation.lab.support import SPEC, Published, executed, finished, first_adaptation


def held() -> tuple[int, set[int]]:
    """Return how many file descriptors this process holds, and its children, zombies included."""
    return len(os.listdir("/proc/self/fd")), {child.pid for child in psutil.Process().children()}


def test_a_twin_that_acts_as_the_run_equals_the_run() -> None:
    result, _ = finished("pump")
    with Run(SPEC, baseline("pump")) as run:
        action = first_adaptation(run)
        found = twin(run, action)
    assert executed(found) == ["load_kernel", "unload_kernel"]
    assert found == result


def test_a_twin_without_the_only_adaptation_equals_a_run_that_never_adapts() -> None:
    never, _ = finished("never")
    with Run(SPEC, baseline("pump")) as run:
        assert first_adaptation(run) != 0
        assert twin(run, policy=Never()) == never
        assert twin(run, policy=Never(), compute=run.plain_compute) == never


def test_a_twin_under_the_policy_goes_on_adapting() -> None:
    with Run(SPEC, baseline("pump")) as run:
        first_adaptation(run)
        later = twin(run)
        other = twin(run, policy=Cheapest())
    assert executed(later)[0] == "load_kernel"
    assert later.adaptations[0].step > 100  # at the next graph
    assert executed(other)[0] == "load_kernel"
    assert other.curve.kernel_parameters[-1] < later.curve.kernel_parameters[-2]


def test_another_stream_changes_what_a_policy_draws_and_nothing_else() -> None:
    with Run(SPEC, baseline("random:0.5")) as run:
        action = first_adaptation(run)
        own, other, again = (twin(run, action, stream=stream) for stream in (0, 1, 1))
    assert own == finished("random:0.5")[0]
    assert other == again
    assert other.adaptations[0] == own.adaptations[0]
    assert other.adaptations[1:] != own.adaptations[1:]
    with Run(SPEC, baseline("pump")) as run:  # draws nothing
        action = first_adaptation(run)
        assert twin(run, action, stream=1) == twin(run, action)


def test_twins_leave_their_run_untouched() -> None:
    expected, alone = finished("pump")

    def many(run: Run) -> None:
        twin(run, policy=Never(), horizon=50)
        twin(run, policy=AtOnce(), horizon=30, data_seed=77)

    found, published = finished("pump", at_graph=many)
    assert found == expected
    assert published.messages == alone.messages


def test_a_twin_publishes_nothing_in_its_run() -> None:
    published = Published()
    with Run(SPEC, baseline("pump"), observer=published) as run:
        first_adaptation(run)
        before = len(published.messages)
        twin(run, horizon=60)
        assert len(published.messages) == before


@pytest.mark.parametrize("policy", [None, Never(), AtOnce()])
def test_the_horizon_ends_a_twin(policy: Any) -> None:
    with Run(SPEC, baseline("pump")) as run:
        first_adaptation(run)
        assert run.step < 100
        found = twin(run, policy=policy, horizon=100)
        assert found.steps == run.step + 100
        assert found.curve.step == [each for each in (50, 100, 150) if each <= found.steps]
        assert twin(run, policy=policy, horizon=10**6).steps == SPEC.steps
        assert twin(run, policy=policy, horizon=0).steps == run.step


def test_a_horizon_cuts_the_same_curve_short() -> None:
    with Run(SPEC, baseline("pump")) as run:
        first_adaptation(run)
        whole, cut = twin(run, policy=Never()), twin(run, policy=Never(), horizon=100)
    points = len(cut.curve.step)
    assert 0 < points < len(whole.curve.step)
    assert cut.curve.validation == whole.curve.validation[:points]


def test_compute_ends_a_twin_under_never() -> None:
    with Run(SPEC, baseline("pump")) as run:
        load = first_adaptation(run)
        budget = run.plain_compute
        found = twin(run, load, policy=Never(), compute=budget)
        longer = twin(run, load, policy=Never())
    assert 200 < found.steps < longer.steps == SPEC.planned
    spent, at = longer.curve.compute, longer.curve.step
    step = (spent[-1] - spent[-2]) / (at[-1] - at[-2])
    since = found.steps - found.curve.step[-1]
    assert budget <= found.curve.compute[-1] + since * step < budget + step
    assert longer.curve.compute[-1] > budget


def test_the_data_seed_reorders_what_follows() -> None:
    with Run(SPEC, baseline("pump")) as run:
        first_adaptation(run)
        (same, other), again = (twin(run, policy=Never(), data_seed=each) for each in (1, 2)), None
        again = twin(run, policy=Never(), data_seed=1)
        before = [step for step in same.curve.step if step <= run.step]
    assert same == again
    assert same.curve.validation[: len(before)] == other.curve.validation[: len(before)]
    assert same.curve.validation[len(before)] != other.curve.validation[len(before)]


def test_an_action_can_be_given_as_a_choice() -> None:
    with Run(SPEC, baseline("pump")) as run:
        load = first_adaptation(run)
        graph = run.graph
        assert graph is not None
        assert twin(run, certain(load, run.pipeline.mask(graph)), horizon=20) == twin(run, load, horizon=20)


def test_an_illegal_action_is_refused() -> None:
    with Run(SPEC, baseline("never")) as run:
        graph = run.advance()
        assert graph is not None
        mask = run.pipeline.mask(graph)
        illegal = int(np.flatnonzero(~mask)[0])
        for action in (illegal, -1, len(mask), 10**9):
            with pytest.raises(TwinError, match=f"action {action} is not legal at this graph; legal are 0, "):
                twin(run, action)
        with pytest.raises(TwinError, match="not legal"):
            twin(run, certain(illegal, mask))
        assert isinstance(twin(run, horizon=1), RunResult)  # the run is as it was


class Failing(Never):
    """Fails at the second graph that it sees."""

    seen = 0

    def choose(self, graph: Any, mask: Any, *, seed: int) -> Any:
        self.seen += 1
        if self.seen > 1:
            raise ValueError("no more")
        return super().choose(graph, mask, seed=seed)


def test_a_failing_twin_leaves_no_process_and_no_pipe() -> None:
    with Run(SPEC, baseline("pump")) as run:
        first_adaptation(run)
        run.pipeline.policy = Failing()  # a Never would be muted: give it as the run's own policy
        before = held()
        with pytest.raises(TwinError, match="the twin failed: ValueError: no more"):
            twin(run)
        assert held() == before


def test_a_killed_twin_is_reported() -> None:
    with pytest.raises(TwinError, match="its process ended with status -9"):
        forked(lambda: os.kill(os.getpid(), 9))


def test_a_result_that_is_no_json_is_reported() -> None:
    with pytest.raises(TwinError, match="TypeError: Object of type set is not JSON"):
        forked(lambda: {1, 2})


def test_a_twin_that_exits_has_failed() -> None:
    with pytest.raises(TwinError, match="SystemExit: 0"):
        forked(lambda: sys.exit(0))


class Interrupted(Exception):
    """Raised by a signal, as Ctrl-C raises KeyboardInterrupt."""


def test_an_interrupted_wait_ends_the_twin() -> None:
    def interrupt(*_: Any) -> None:
        raise Interrupted

    kept = signal.signal(signal.SIGALRM, interrupt)
    before, began = held(), time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Interrupted):
            forked(lambda: time.sleep(60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)
    assert time.monotonic() - began < 30  # the twin would have slept for 60 s
    assert held() == before
