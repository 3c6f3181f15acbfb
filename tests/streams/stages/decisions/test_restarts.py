"""A restart decides nothing anew, and what is held for it is bounded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamiyo.schemas.adaptation import OutcomeStatus
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES
from tamiyo.streams.stages.base import Incoming, PriorOutput
from tests.streams.stages.decisions.bench import Bench, first_adaptation, graph, outcome
from tests.support.released import release


def run_of(windows: int) -> list[ModelGraph]:
    """Three runs side by side, of which two end."""
    return [
        graph(index, run_id=f"run-{run}", final=run != 1 and index == windows - 1)
        for index in range(windows)
        for run in range(3)
    ]


@given(st.lists(st.integers(1, 89), min_size=1, max_size=3), st.integers(1, 5), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_crash_anywhere_decides_nothing_anew(
    tmp_path: Path, crashes: list[int], batch: int, new_policy: bool
) -> None:
    fields: dict[str, Any] = {"decision_interval": 2, "rate_steps": 300, "max_adaptations": 1, "in_flight_steps": 100}
    whole, broken = Bench(tmp_path, **fields), Bench(tmp_path, **fields)
    for each in run_of(30):
        whole.log.add(GRAPHS, each)
        broken.log.add(GRAPHS, each)
    whole.harness.run()
    for crash in sorted(crashes):
        broken.harness.run(crash, batch=batch)
        before = len(broken.harness.published)
        if new_policy:
            # A decision made under one policy stays, though its graph is read again under the next.
            broken.checkpoints.records["tamiyo"] = release(tmp_path, 1)
            broken.harness.run(crash, batch=batch)
            broken.checkpoints.records["tamiyo"] = release(tmp_path, 0)
        assert len(broken.harness.published) == before
    broken.harness.run(batch=batch)
    assert broken.harness.records(DECISIONS) == whole.harness.records(DECISIONS)
    assert broken.harness.committed == whole.harness.committed


def test_open_offsets_are_bounded_by_the_rate_steps(bench: Bench) -> None:
    bench.decide(*(graph(index) for index in range(80)))
    assert bench.harness.committed[GRAPHS.name] >= 80 - 1 - bench.settings.rate_steps // 50


@pytest.mark.parametrize("outcome_first", [False, True])
def test_an_outcome_of_a_decision_before_a_restart_keeps_no_offset(
    make_bench: Callable[..., Bench], outcome_first: bool
) -> None:
    bench = make_bench(heed_outcomes=True)
    run_id, _ = first_adaptation(bench)
    decision = bench.harness.records(DECISIONS)[-1]
    stage = bench.make()
    stage.restore([PriorOutput(DECISIONS.name, 0, decision, decision.decision_id, {GRAPHS.name: 7})])
    late = Incoming(OUTCOMES.name, 0, 3, 0, outcome(decision.decision_id, run_id, OutcomeStatus.EXECUTED))
    # Reading resumes after the decision's graph, whose offset was committed.
    batch = [late, Incoming(GRAPHS.name, 0, 8, 0, graph(0, run_id="another"))]
    stage.feed(batch if outcome_first else batch[::-1])
    assert OUTCOMES.name not in stage.open_offsets()


def test_an_outcome_read_before_the_graph_of_its_decision_keeps_its_offset(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(heed_outcomes=True)
    run_id, _ = first_adaptation(bench)
    decision = bench.harness.records(DECISIONS)[-1]
    stage = bench.make()
    stage.restore([PriorOutput(DECISIONS.name, 0, decision, decision.decision_id, {GRAPHS.name: 7})])
    stage.feed([Incoming(OUTCOMES.name, 0, 3, 0, outcome(decision.decision_id, run_id, OutcomeStatus.EXECUTED))])
    assert stage.open_offsets() == {OUTCOMES.name: 3}


def test_a_run_that_was_idle_before_a_restart_keeps_no_offset_after_it(bench: Bench) -> None:
    first_adaptation(bench)
    stage = bench.harness.stage
    stage.tick(10**15)
    assert stage.open_offsets()  # records of the run may be waiting on the log
    stage.backlog = 0
    stage.tick(10**15 + 2000)
    assert stage.open_offsets() == {}


def test_a_run_that_is_over_or_idle_keeps_no_offset(bench: Bench) -> None:
    run_id, at = first_adaptation(bench)
    stage = bench.harness.stage
    assert stage.open_offsets()
    stage.tick(10_000)
    stage.tick(10_000 + int(1000 * bench.settings.idle_timeout_s))
    assert stage.open_offsets() == {}
    bench.decide(graph(at + 1, run_id=run_id, final=True))
    assert run_id not in bench.harness.stage._runs
