"""Traffic: runs with their twins in files, made in parallel, resumed, and robust to failures."""

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from tamiyo.evaluation.lab import traffic
from tamiyo.evaluation.lab.baselines import BASELINES, AtOnce, Random
from tamiyo.evaluation.lab.traffic import (
    ALONE,
    REDRAWN_WITH,
    REDRAWN_WITHOUT,
    REORDERED_WITH,
    REORDERED_WITHOUT,
    REPEATED_WITH,
    REPEATED_WITHOUT,
    UNDER_POLICY,
    Job,
    Traffic,
    generate,
    load,
    make,
    missing,
)
from tamiyo.schemas.errors import ConfigurationError, TamiyoError
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES, WINDOWS
from tests.evaluation.lab.support import RunSpec, executed, finished

SHORT = Job("digits", "never", 0, steps=60)
GROWN = Job("digits", "at_once", 3, alone=1.0, under_policy=1.0, repeated=1.0, steps=300)


@pytest.fixture(scope="module")
def grown() -> Traffic:
    """Return a run with two loads, and every branch of both."""
    return make(GROWN)


class Done:
    """Keeps which jobs ended and how."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.jobs: dict[str, Exception | None] = {}
        self._stop_after = stop_after

    def __call__(self, job: Job, error: Exception | None) -> None:
        self.jobs[job.name] = error
        if len(self.jobs) == self._stop_after:
            raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_branches_leave_at_every_adaptation(grown: Traffic) -> None:
    adapted = [each.decision_id for each in grown.result.adaptations]
    assert executed(grown.result) == ["load_kernel", "load_kernel"]
    assert {(each.decision_id, each.kind) for each in grown.branches} >= {
        (name, kind) for name in adapted for kind in (ALONE, UNDER_POLICY, REPEATED_WITH, REPEATED_WITHOUT)
    }
    never, _ = finished("never")
    assert grown.branch(adapted[0], ALONE) == never
    alone = grown.branch(adapted[1], ALONE)
    assert alone is not None
    assert executed(alone) == ["load_kernel"]
    assert grown.branch("unknown", ALONE) is None


def test_repetitions_have_the_order_of_the_data_in_common(grown: Traffic) -> None:
    first = grown.result.adaptations[0].decision_id
    with_it, without = grown.branch(first, REPEATED_WITH), grown.branch(first, REPEATED_WITHOUT)
    assert with_it is not None
    assert without is not None
    assert executed(with_it) == ["load_kernel"]
    assert executed(without) == []
    never, _ = finished("never")
    assert without.curve.validation != never.curve.validation


def test_worth_is_repeated_under_the_policy_with_the_order_of_the_data_in_common() -> None:
    found = make(Job("digits", "random:0.4", 3, alone=0.0, under_policy=1.0, reordered=1.0, redrawn=1.0, steps=300))
    adapted = list(dict.fromkeys(each.decision_id for each in found.branches))
    assert adapted[0] == found.result.adaptations[0].decision_id
    for name in adapted:
        kinds = [UNDER_POLICY, REORDERED_WITH, REORDERED_WITHOUT, REDRAWN_WITH, REDRAWN_WITHOUT]
        assert [each.kind for each in found.branches if each.decision_id == name] == kinds
        for with_it, without in ((REORDERED_WITH, REORDERED_WITHOUT), (REDRAWN_WITH, REDRAWN_WITHOUT)):
            one, other = found.branch(name, with_it), found.branch(name, without)
            assert one is not None
            assert other is not None
            assert name in [each.decision_id for each in one.adaptations]
            assert name not in [each.decision_id for each in other.adaptations]
            before = [i for i, step in enumerate(one.curve.step) if step <= found.result.adaptations[0].step]
            assert [one.curve.test[i] for i in before] == [found.result.curve.test[i] for i in before]
            assert one.curve.test[-1] != found.result.curve.test[-1]


def test_the_run_is_that_without_twins(grown: Traffic) -> None:
    result, published = finished("at_once", RunSpec("digits", 3, 300))
    logged = (GRAPHS, DECISIONS, OUTCOMES, WINDOWS)
    assert grown.result == result
    assert grown.log == [(topic.name, data) for topic, data in published.messages if topic in logged]
    assert len(list(grown.records())) == len(grown.log)


def test_shares_of_branches_are_nested() -> None:
    found = make(Job("digits", "at_once", 3, alone=0.0, steps=300))
    assert found.branches == []


def test_a_file_gives_back_what_was_saved(grown: Traffic, tmp_path: Path) -> None:
    grown.save(tmp_path / "run.parquet")
    assert Traffic.load(tmp_path / "run.parquet") == grown
    assert names(tmp_path) == ["run.parquet"]


def test_policies_by_name() -> None:
    rate = Job("digits", "random:0.3", 1).make_policy()
    assert isinstance(rate, Random)
    assert rate.rate == 0.3
    assert isinstance(GROWN.make_policy(), AtOnce)
    assert Job("digits", "random:0.3", 1).name == "digits-random_0.3-1"


@pytest.mark.parametrize("rate", ["", "often", "nan", "-0.1", "1.1", "inf"])
def test_a_wrong_rate_is_refused(rate: str) -> None:
    with pytest.raises(ConfigurationError, match="expected random:RATE with a probability"):
        Job("digits", f"random:{rate}", 1).make_policy()


def test_a_file_of_another_run_of_that_name_is_a_conflict(tmp_path: Path) -> None:
    generate([SHORT], tmp_path, 1, Done())
    longer = replace(SHORT, steps=90)
    assert traffic.conflicts([SHORT, Job("digits", "never", 1)], tmp_path) == []
    assert traffic.conflicts([longer], tmp_path) == [longer]


def test_a_finished_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [SHORT, Job("digits", "never", 1, steps=60)]
    generate(jobs[:1], tmp_path, 1, Done())
    before = (tmp_path / "digits-never-0.parquet").stat().st_mtime_ns
    assert missing(jobs, tmp_path) == jobs[1:]
    done = Done()
    generate(jobs, tmp_path, 1, done)
    assert done.jobs == {"digits-never-1": None}
    assert (tmp_path / "digits-never-0.parquet").stat().st_mtime_ns == before
    monkeypatch.setattr(traffic, "make", lambda job: pytest.fail("made again"))
    generate(jobs, tmp_path, 1, done)
    assert [each.job for each in load(tmp_path)] == [each.job for each in load(tmp_path, jobs)] == jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_run_is_reported_and_the_others_go_on(workers: int, tmp_path: Path) -> None:
    bad, unknown = Job("nothing", "never", 0, steps=60), Job("digits", "nothing", 0, steps=60)
    done = Done()
    generate([bad, unknown, SHORT], tmp_path, workers, done)
    assert done.jobs.pop("digits-never-0") is None
    assert {name: str(error) for name, error in done.jobs.items()} == {
        "nothing-never-0": str(done.jobs["nothing-never-0"]),
        "digits-nothing-0": "digits-nothing-0: ConfigurationError: there is no baseline 'nothing'; choose from "
        f"{', '.join(BASELINES)}, random:RATE, learned:FILE, static, static_wider, gromo",
    }
    assert "DatasetError: there is no task 'nothing'" in str(done.jobs["nothing-never-0"])
    assert names(tmp_path) == ["digits-never-0.parquet"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_keeps_what_is_finished(workers: int, tmp_path: Path) -> None:
    jobs = [Job("digits", "never", seed, steps=60) for seed in range(8)]
    with pytest.raises(KeyboardInterrupt):
        generate(jobs, tmp_path, workers, Done(stop_after=1))
    kept = names(tmp_path)
    assert 1 <= len(kept) < len(jobs)
    assert all(name.endswith(".parquet") for name in kept)
    done = Done()
    generate(jobs, tmp_path, 1, done)
    assert len(done.jobs) == len(jobs) - len(kept)
    assert len(list(load(tmp_path))) == len(jobs)


class KilledPool:
    """Runs jobs in this process until its process is `killed`, before the job of that number."""

    kills: ClassVar[list[int]] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        self._made = 0
        self._killed_at = self.kills.pop(0) if self.kills else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._killed_at is not None and self._made >= self._killed_at:
            future.set_exception(BrokenProcessPool("terminated abruptly"))
        else:
            future.set_result(work(*arguments))
        self._made += 1
        return future


def test_runs_lost_with_a_killed_process_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "ProcessPoolExecutor", KilledPool)
    monkeypatch.setattr(KilledPool, "kills", [1, 0, 0, 1])
    jobs = [Job("digits", "never", seed, steps=60) for seed in range(3)]
    generate(jobs, tmp_path, 2, Done())
    assert len(names(tmp_path)) == 3


def test_processes_killed_again_and_again_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "ProcessPoolExecutor", KilledPool)
    monkeypatch.setattr(KilledPool, "kills", [0, 0, 0])
    with pytest.raises(TamiyoError, match="3 times in a row a process ended before any of 1 runs"):
        generate([SHORT], tmp_path, 2, Done())


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    jobs = [Job("digits", "at_once", seed, steps=120) for seed in (3, 4)]
    for workers in (1, 2):
        generate(jobs, tmp_path / str(workers), workers, Done())
    one, two = (list(load(tmp_path / str(workers))) for workers in (1, 2))
    assert one == two
