"""A run of the laboratory is a function of its arguments, to the bit."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from tamiyo.evaluation.lab.baselines import Learned, Never, baseline
from tamiyo.evaluation.lab.run import Run, RunResult, RunSpec
from tamiyo.host._common import clock
from tamiyo.host._reference.tasks import load_task
from tamiyo.schemas.errors import DatasetError
from tamiyo.schemas.topics import CATALOGUE, DECISIONS, GRAPHS, OUTCOMES, SIGNALS, TELEMETRY, TOPOLOGY, WINDOWS
from tamiyo.streams.stages.registry import STAGES
from tests.evaluation.lab.support import SPEC, executed, finished

ROOT = Path(__file__).parents[3]
HASH = "from tests.evaluation.lab.support import finished; print(finished('pump')[1].digest())"


def test_the_same_run_publishes_the_same_bytes() -> None:
    (first, one), (second, other) = finished("pump"), finished("pump")
    assert executed(first) == ["load_kernel", "unload_kernel"]
    assert first == second
    for topic in CATALOGUE:
        assert [data for at, data in one.messages if at is topic] == [
            data for at, data in other.messages if at is topic
        ], topic.name
    assert one.digest() == other.digest()


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_publishes_the_same_bytes(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", HASH]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == finished("pump")[1].digest()


def test_every_topic_of_the_pipeline_gets_records() -> None:
    result, published = finished("pump")
    frames = sum(len(published.records[topic.name]) for topic in TELEMETRY)
    counts = {topic: len(published.records[topic.name]) for topic in (WINDOWS, GRAPHS, DECISIONS)}
    assert len(published.records[SIGNALS.name]) == frames > 30
    assert set(counts.values()) == {7}  # one for each 50 steps, and the last
    assert len(published.records[TOPOLOGY.name]) == 1
    assert len(published.records[OUTCOMES.name]) == len(result.adaptations) == 2


def test_the_seed_decides_the_network_and_the_data_seed_the_order() -> None:
    plain, _ = finished("never", RunSpec("digits", 0, 100))
    same, _ = finished("never", RunSpec("digits", 0, 100, data_seed=0))
    reordered, _ = finished("never", RunSpec("digits", 0, 100, data_seed=1))
    other, _ = finished("never", RunSpec("digits", 1, 100, data_seed=0))
    assert same == plain
    assert len({tuple(each.curve.validation) for each in (plain, reordered, other)}) == 3
    assert (reordered.seed, reordered.data_seed) == (0, 1)


def test_a_run_never_adapted_costs_its_steps_times_the_first() -> None:
    result, _ = finished("never")
    assert executed(result) == []
    assert result.steps == 300
    assert result.curve.step == [50, 100, 150, 200, 250, 300]
    assert result.curve.compute[-1] == pytest.approx(result.compute, rel=1e-9)
    assert set(result.curve.kernel_parameters) == {0}


def test_a_grown_run_costs_more_compute() -> None:
    result, _ = finished("at_once")
    assert executed(result) == ["load_kernel", "load_kernel"]
    assert result.curve.compute[-1] > 1.05 * result.compute
    assert result.curve.kernel_parameters[-1] > 0
    assert result.compute == finished("never")[0].compute


def test_advance_pauses_at_a_step_and_goes_on() -> None:
    with Run(SPEC, Never()) as run:
        assert run.advance(until=20) is None
        assert run.step == 20
        graph = run.advance()
        assert graph is not None
        assert run.step > 20
        assert run.advance(until=1) is graph  # it waits still
        assert run.finish() == finished("never")[0]
        assert run.advance() is None


def test_runs_of_one_process_take_turns() -> None:
    before = clock.current()
    policies = [baseline("pump"), Learned()]
    with Run(SPEC, policies[0]) as one, Run(SPEC, policies[1]) as other:
        going = [one, other]
        while going:
            for run in list(going):
                if run.advance() is None:
                    going.remove(run)
                else:
                    run.decide()
        assert one.result() == finished("pump")[0]
        assert other.result() == finished("learned")[0]
    assert clock.current() is before


def test_a_run_left_early_leaves_nothing_behind() -> None:
    before = clock.current()
    memory = fsspec.filesystem("memory")
    with Run(SPEC, baseline("at_once")) as run:
        while not run.adaptations:
            assert run.advance() is not None
            run.decide()
        assert memory.find(run.pipeline.store_url)
    assert not memory.exists(run.pipeline.store_url)
    assert clock.current() is before


def test_results_survive_as_plain_values() -> None:
    result, _ = finished("at_once")
    assert RunResult.from_dict(result.to_dict()) == result


def test_settings_reach_stages_and_host() -> None:
    with Run(SPEC, baseline("at_once"), settings={"windows": {"width": 100}, "host": {"cooldown_steps": 250}}) as run:
        graph = run.advance()
        assert graph is not None
        assert (graph.step, graph.cooldown_steps) == (90, 250)
        assert executed(run.finish()) == ["load_kernel"]


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(DatasetError, match="no task 'nothing'"), Run(RunSpec("nothing", 0), Never()):
        pass


@pytest.mark.parametrize("policy", ["learned", "at_once"])
def test_a_decision_takes_no_time(policy: str) -> None:
    with Run(SPEC, baseline(policy)) as run:
        while run.advance() is not None:
            before = run.clock.seconds()
            run.decide()
            assert run.clock.seconds() == before
        assert before > run.clock.training_seconds > 0


def test_the_test_split_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds() -> float:
        with Run(RunSpec("digits", 0, 100), Never()) as run:
            run.finish()
            return run.clock.seconds()

    expected = seconds()
    task = load_task("digits")
    smaller = replace(task, test=task.test.take(0, 1))
    monkeypatch.setattr("tamiyo.evaluation.lab.run.lab_task", lambda name: smaller)
    assert seconds() == expected


@pytest.mark.parametrize("stage", STAGES)
def test_stages_have_the_settings_of_production(stage: str) -> None:
    with Run(SPEC, Never()) as run:
        found = run.pipeline.stages[stage].settings.model_dump()  # type: ignore[attr-defined]
    usual = STAGES[stage].settings().model_dump()
    assert {name for name in usual if found[name] != usual[name]} <= {"store_url", "checkpoint_url"}


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = finished("pump")
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "100")
    monkeypatch.setenv("TAMIYO_HOST_RAMP_STEPS", "1")
    monkeypatch.setenv("TAMIYO_REWARD_ESTIMATOR", "rule")
    _, again = finished("pump")
    assert again.digest() == plain.digest()
