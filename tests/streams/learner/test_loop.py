"""The learner's process on the embedded broker: each experience counts once after a crash at any point."""

import math
import threading
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tamiyo.models.checkpoint import checksum, load
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, Experience
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.learner.releases import CheckpointReleases
from tamiyo.streams.stages.rewards.components import ACCURACY
from tests.streams.learner.bench import BATCH, Bench
from tests.support.experiences import make_experience


class Killed(Exception):
    """The process is killed here."""


def test_a_policy_is_stored_and_announced_with_its_offsets(bench: Bench) -> None:
    bench.publish(0)
    loop = bench.learn(BATCH)
    first, second = bench.announced()
    assert (first.version, first.parent_version, first.experiences, sum(first.offsets.values())) == (0, None, 0, 0)
    assert (second.version, second.parent_version, second.experiences, second.updates) == (1, 0, BATCH, 1)
    assert first.status == second.status == CheckpointStatus.RELEASED
    assert sum(second.offsets.values()) == BATCH
    data = bench.store.read(second.file)
    assert (checksum(data), len(data)) == (second.checksum, second.size_bytes)
    assert load(data)[1].offsets == second.offsets
    assert loop.readiness()["policy_version"] == 1


def kill_at(monkeypatch: pytest.MonkeyPatch, where: str, version: int) -> None:
    """Kill the learner before it stores or announces a version."""
    real: Any = getattr(CheckpointReleases, where)

    def killed(self: CheckpointReleases, header: Any, data: bytes) -> Any:
        if header.version == version:
            raise Killed
        return real(self, header, data)

    monkeypatch.setattr(CheckpointReleases, where, killed)


@pytest.mark.parametrize(("where", "stored"), [("release", [0]), ("announce", [0, 1])])
def test_each_experience_counts_once_after_a_crash_before_or_after_the_checkpoint(
    bench: Bench, where: str, stored: list[int]
) -> None:
    bench.publish(0)
    with pytest.MonkeyPatch.context() as patched:
        kill_at(patched, where, 1)
        with pytest.raises(Killed):
            bench.run(lambda _: False)
    assert bench.store.versions() == stored
    assert [each.version for each in bench.announced()] == [0]
    bench.learn(BATCH)
    assert [(each.version, each.experiences) for each in bench.announced()] == [(0, 0), (1, BATCH)]
    bench.publish(BATCH)
    loop = bench.learn(2 * BATCH)
    newest = bench.announced()[-1]
    assert (newest.version, newest.experiences, newest.updates) == (2, 2 * BATCH, 2)
    assert sum(newest.offsets.values()) == 2 * BATCH
    assert loop.learner is not None
    assert loop.learner.last is not None
    assert loop.learner.last.replayed == BATCH  # refilled into replay, not counted again


@pytest.mark.parametrize("where", ["release", "announce"])
def test_only_one_of_two_learners_releases(bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """One pauses before or after its policy is stored; another takes over and has released when it resumes."""
    bench.publish(0)
    real: Any = getattr(CheckpointReleases, where)
    paused = threading.Event()

    def pause(self: CheckpointReleases, header: Any, data: bytes) -> Any:
        if header.version == 1 and not paused.is_set():
            paused.set()
            bench.publish(BATCH)
            bench.learn(2 * BATCH)
        return real(self, header, data)

    monkeypatch.setattr(CheckpointReleases, where, pause)
    with pytest.raises(PolicyError, match="another learner is running for policy 'tamiyo'; run exactly one"):
        bench.run(lambda _: False)
    bench.publish(2 * BATCH)
    loop = bench.learn(3 * BATCH)
    newest = bench.announced()[-1]
    assert (newest.version, newest.experiences, sum(newest.offsets.values())) == (
        loop.readiness()["policy_version"], 3 * BATCH, 3 * BATCH,
    )  # fmt: skip
    for version in bench.store.versions():
        header = load(bench.store.read(bench.store.file_name(version)))[1]
        assert header.experiences == sum(header.offsets.values())
        announced = {each.checksum for each in bench.announced() if each.version == version}
        assert announced == {checksum(bench.store.read(bench.store.file_name(version)))}, version


def test_bad_records_are_dead_lettered_and_block_nothing(bench: Bench) -> None:
    unfit = make_experience("unfit", run_id="run-0").model_copy(update={"kinds": ["fly"]})
    bench.log.publish_bytes(EXPERIENCE, [(b"run-0", b"no avro"), (b"run-0", None), (b"run-0", encode(unfit))])
    bench.publish(0)
    loop = bench.learn(BATCH)
    dead_letter, empty = bench.log.read(EXPERIENCE.dead_letters)
    assert empty.value is None
    assert (dead_letter.value, dead_letter.key) == (b"no avro", b"run-0")
    assert "expected a" in dead_letter.headers["tamiyo-reason"]
    assert dead_letter.headers["tamiyo-source"].startswith(f"{EXPERIENCE.name}:")
    assert loop.learner is not None
    assert loop.learner.rejected == {"kinds": 1}
    assert sum(bench.announced()[-1].offsets.values()) == BATCH + 3


def test_after_a_rolled_back_policy_it_resumes_from_the_previous_one(bench: Bench) -> None:
    bench.publish(0)
    bench.learn(BATCH)
    bad = bench.announced()[-1]
    withdrawn = bad.model_copy(update={"status": CheckpointStatus.ROLLED_BACK})
    bench.log.publish_bytes(CHECKPOINTS, [(b"tamiyo", encode(withdrawn))])
    bench.learn(BATCH)
    after = [(each.version, each.parent_version, each.experiences) for each in bench.announced()[3:]]
    # The weights and offsets of version 0 under a new number; the experiences since then count again.
    assert after == [(2, 0, 0), (3, 2, BATCH)]


def test_a_revision_of_a_learned_experience_does_not_count_again(bench: Bench) -> None:
    bench.publish(0)
    bench.learn(BATCH)
    repeated: Experience = make_experience(0, run_id="run-0")
    bench.log.publish(EXPERIENCE, [repeated, repeated.model_copy(update={"revision": 1})])
    bench.publish(BATCH)
    bench.learn(2 * BATCH)
    assert sum(bench.announced()[-1].offsets.values()) <= 2 * BATCH + 2
    assert bench.announced()[-1].experiences == 2 * BATCH


def test_a_new_policy_never_takes_a_used_number(bench: Bench) -> None:
    bench.run(lambda loop: loop.ready)
    bench.store.delete(0)
    bench.run(lambda loop: loop.ready)
    assert [each.version for each in bench.announced()] == [0, 1]
    assert bench.store.versions() == [1]


def correlation(task: str, component: str) -> float | None:
    return REGISTRY.get_sample_value("tamiyo_learner_component_correlation", {"task": task, "component": component})


def test_correlations_by_task_survive_a_restart(bench: Bench) -> None:
    """Each adaptation counts once, with its newest revision, before and after a restart."""
    adaptations = [
        make_experience(
            number, components={ACCURACY: number / 10}, improvement=number / 20, task="digits", complete=False
        )
        for number in range(3 * BATCH)
    ]
    outdated = adaptations[0].model_copy(update={"improvement": 0.9})
    revised = adaptations[0].model_copy(update={"revision": 1})
    unfit = make_experience("unfit", improvement=0.9, task="digits", components={ACCURACY: -9.0}, kinds=["fly"])
    bench.log.publish(EXPERIENCE, [unfit, outdated, *adaptations[1 : 2 * BATCH]])
    bench.learn(2 * BATCH)
    assert correlation("digits", ACCURACY) == pytest.approx(math.nan, nan_ok=True)  # 8 are too few
    bench.log.publish(EXPERIENCE, [revised, outdated, *adaptations[2 * BATCH :]])
    bench.learn(3 * BATCH)
    assert correlation("digits", ACCURACY) == pytest.approx(1)
    bench.run(lambda loop: loop.ready)
    assert correlation("digits", ACCURACY) == pytest.approx(1)
