"""The learner's process on the embedded broker: each experience counts once after a crash at any point."""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tamiyo.models.checkpoint import CheckpointStore, GateResult, Verdict, checksum, load
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, Experience, PolicyCheckpoint
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin.policies import PolicyVersions
from tamiyo.streams.learner import loop as module
from tamiyo.streams.learner.gates import GoldenGate
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.learner.releases import CheckpointReleases
from tamiyo.streams.settings import LearnerSettings
from tamiyo.streams.stages.rewards.components import ACCURACY
from tests.support.experiences import BLUEPRINTS, make_experience
from tests.support.kafka_log import KafkaLog

BATCH = 4


class Killed(Exception):
    """The process is killed here."""


class Bench:
    """One installation: a store, a broker, and learners one after the other."""

    def __init__(self, folder: Path, kafka: KafkaSettings, names: TopicNames, log: KafkaLog) -> None:
        self.url = f"file://{folder}"
        self.store = CheckpointStore(self.url)
        self.log = log
        self.parts = (kafka, names)
        self.settings: dict[str, Any] = {
            "checkpoint_url": self.url,
            "fresh_batch": BATCH,
            "batch_size": 8,
            "minibatch_size": 8,
            "update_epochs": 1,
        }

    @property
    def policies(self) -> PolicyVersions:
        """What `tamiyo policy` works with."""
        return PolicyVersions("tamiyo", self.url, *self.parts)

    def run(self, until: Callable[[LearnerLoop], bool]) -> LearnerLoop:
        """Run a learner until a condition holds, or it is killed."""
        loop = LearnerLoop(LearnerSettings(**self.settings), *self.parts)
        failed: list[BaseException] = []

        def body() -> None:
            try:
                loop.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        deadline = time.monotonic() + 60
        while thread.is_alive() and not until(loop) and time.monotonic() < deadline:
            time.sleep(0.05)
        loop.stop()
        thread.join(30)
        assert not thread.is_alive()
        if failed:
            raise failed[0]
        return loop

    def learn(self, experiences: int) -> LearnerLoop:
        """Run a learner until it has counted that many experiences and none is waiting."""
        loop = self.run(lambda loop: loop.ready and done(loop, experiences))
        assert done(loop, experiences)
        return loop

    def publish(self, first: int, count: int = BATCH, **fields: Any) -> None:
        """Publish experiences of three runs."""
        made = [make_experience(n, run_id=f"run-{n % 3}", **fields) for n in range(first, first + count)]
        self.log.publish(EXPERIENCE, made)

    def announced(self) -> list[PolicyCheckpoint]:
        return [each.record(PolicyCheckpoint) for each in self.log.read(CHECKPOINTS.name)]


def done(loop: LearnerLoop, experiences: int) -> bool:
    learner = loop.learner
    return learner is not None and learner.experiences == experiences and not learner.waiting


@pytest.fixture
def bench(
    tmp_path: Path, kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    monkeypatch.setattr(module.blueprints, "names", lambda: BLUEPRINTS)
    return Bench(tmp_path, kafka, names, kafka_log)


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


# Gates, canary and operators' orders


def failures(gate: str) -> float:
    return REGISTRY.get_sample_value("tamiyo_learner_gate_failures_total", {"gate": gate}) or 0.0


def test_a_release_records_the_verdicts_of_its_gates(bench: Bench) -> None:
    bench.publish(0)
    bench.learn(BATCH)
    recorded = load(bench.store.read(bench.store.file_name(1)))[1].release
    assert [(each.gate, each.verdict) for each in recorded.gates] == [
        ("finite", Verdict.PASSED),
        ("divergence", Verdict.PASSED),
        ("golden", Verdict.PASSED),
        ("off_policy", Verdict.NO_EVIDENCE),
    ]
    assert (recorded.refused, recorded.rolled_back, recorded.reference_version) == ((), (), 0)
    announced = {name: value for name, value in bench.announced()[-1].metrics.items() if name.startswith("gates")}
    assert announced == {"gates/finite": 1, "gates/divergence": 1, "gates/golden": 1, "gates/off_policy": 0}
    assert (bench.announced()[-1].fallback_version, bench.announced()[-1].fallback_checksum) == (
        0, bench.announced()[0].checksum,
    )  # fmt: skip


def test_a_candidate_that_fails_a_gate_is_not_released_and_the_incumbent_survives_a_restart(bench: Bench) -> None:
    failed = GateResult(gate="golden", verdict=Verdict.FAILED, reason="planted")
    before = failures("golden")
    bench.publish(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GoldenGate, "check", lambda self, comparison: failed)
        loop = bench.learn(BATCH)
        assert [each.version for each in bench.announced()] == [0]
        assert failures("golden") == before + 1
        assert loop.learner is not None
        assert (loop.learner.version, loop.learner.rolled_back, len(loop.learner.replay)) == (0, 1, BATCH)
        bench.learn(BATCH)  # after a restart the experiences count again, since no checkpoint has counted them
        assert [each.version for each in bench.announced()] == [0]
        assert failures("golden") == before + 2
    bench.learn(BATCH)
    assert [(each.version, each.experiences) for each in bench.announced()] == [(0, 0), (1, BATCH)]


def test_failures_are_recorded_with_the_next_release(bench: Bench) -> None:
    failed = GateResult(gate="golden", verdict=Verdict.FAILED, reason="planted")
    real, calls = GoldenGate.check, []

    def once(self: GoldenGate, comparison: Any) -> GateResult:
        calls.append(comparison)
        return failed if len(calls) == 1 else real(self, comparison)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(GoldenGate, "check", once)
        bench.publish(0, 2 * BATCH)
        bench.learn(2 * BATCH)
    newest = load(bench.store.read(bench.store.file_name(1)))[1]
    assert newest.release.refused == (failed,)
    announced = bench.announced()[-1].metrics
    assert announced["gates_failed/golden"] == 1
    assert {name.partition("/")[0] for name in announced} == {"losses", "charts", "gates", "gates_failed"}
    assert (newest.experiences, sum(newest.offsets.values()), newest.updates) == (2 * BATCH, 2 * BATCH, 1)


def test_a_worse_version_that_passed_is_rolled_back_from_live_rewards(bench: Bench) -> None:
    """The gates know nothing of it; the decisions of versions 1 and later earn much less than those of version 0."""
    bench.settings["gates"] = ()
    bench.publish(0, 15 * BATCH, reward=0.5)
    bench.learn(15 * BATCH)
    released = bench.announced()[-1].version
    assert released == 15
    assert {each.status for each in bench.announced()} == {CheckpointStatus.RELEASED}
    for batch in range(15, 60):
        bench.publish(BATCH * batch, reward=-0.8, policy_version=1)
    loop = bench.run(
        lambda loop: (
            loop.learner is not None
            and any(each.status == CheckpointStatus.ROLLED_BACK for each in bench.announced())
            and loop.learner.experiences == 60 * BATCH
            and not loop.learner.waiting
        )
    )
    announced = bench.announced()
    (position,) = [n for n, each in enumerate(announced) if each.status == CheckpointStatus.ROLLED_BACK]
    bad, following = announced[position], announced[position + 1]
    assert bad.fallback_version == 0
    assert bad.fallback_checksum == announced[0].checksum
    assert "relative to version 0" in bad.reason
    assert (following.version, following.parent_version, following.status) == (
        bad.version + 1, 0, CheckpointStatus.RELEASED,
    )  # fmt: skip
    # The weights of version 0 under a new number, everything read so far counted once.
    restored, header, _ = load(bench.store.read(following.file))
    first = load(bench.store.read(announced[0].file))[0]
    weights = restored.state_dict()
    assert all(bool((weights[name] == value).all()) for name, value in first.state_dict().items())
    assert header.release.rolled_back == tuple(range(1, bad.version + 1))
    assert header.experiences == sum(header.offsets.values())
    # No second rollback: the decisions of versions that were rolled back count no more.
    newest = announced[-1]
    assert (newest.status, newest.experiences) == (CheckpointStatus.RELEASED, 60 * BATCH)
    assert loop.readiness()["policy_version"] == newest.version
    versions = [each.version for each in announced if each.status == CheckpointStatus.RELEASED]
    assert versions == sorted(set(versions))
    resumed = bench.run(lambda loop: loop.ready)
    assert resumed.readiness()["policy_version"] == newest.version
    assert resumed._release_guard.rolled_back == header.release.rolled_back
    assert resumed._release_guard.reference == 0


def test_an_operator_rolls_back_while_the_learner_runs(bench: Bench) -> None:
    bench.publish(0, 2 * BATCH)
    bench.learn(2 * BATCH)
    ordered: list[PolicyCheckpoint] = []

    def roll_back(loop: LearnerLoop) -> bool:
        if loop.ready and not ordered:
            ordered.append(bench.policies.roll_back(to=1, reason="rewards fell"))
        return loop.ready and loop.readiness()["policy_version"] == 3

    loop = bench.run(roll_back)
    assert loop.readiness()["policy_version"] == 3
    last = bench.announced()[-1]
    assert (last.version, last.parent_version, last.experiences) == (3, 1, 2 * BATCH)
    assert [each.status for each in bench.policies.list()] == ["released", "rolled_back", "released", "released"]
    bench.publish(2 * BATCH)
    bench.learn(3 * BATCH)
    last = bench.announced()[-1]
    assert (last.version, last.parent_version, sum(last.offsets.values())) == (4, 3, 3 * BATCH)


def test_a_rollback_while_the_learner_is_down_skips_what_it_takes_back(bench: Bench) -> None:
    bench.publish(0, 3 * BATCH)
    bench.learn(3 * BATCH)
    bench.policies.roll_back(to=1)
    bench.learn(3 * BATCH)
    after = [(each.version, each.parent_version, each.experiences) for each in bench.announced()[5:]]
    # The experiences after version 1's offsets count again.
    assert after[0] == (4, 1, BATCH)
    assert after[-1][2] == 3 * BATCH
    assert [each.status for each in bench.policies.list() if each.version in (2, 3)] == ["rolled_back"] * 2


def test_a_frozen_learner_reads_and_releases_nothing_until_it_is_thawed(bench: Bench) -> None:
    bench.publish(0)
    bench.learn(BATCH)
    bench.policies.freeze(True, "audit")
    bench.publish(BATCH, 2 * BATCH)
    for _ in range(2):  # before and after a restart
        loop = bench.learn(3 * BATCH)
        assert loop.learner is not None
        assert (loop.learner.version, len(loop.learner.replay)) == (1, 3 * BATCH)
    assert max(each.version for each in bench.announced()) == 1
    done_so_far: list[str] = []

    def thaw(loop: LearnerLoop) -> bool:
        if done(loop, 3 * BATCH) and not done_so_far:
            done_so_far.append("ordered")
            bench.policies.freeze(False)
        if done_so_far == ["ordered"] and not loop._orders.frozen:  # what it reads before goes to replay only
            done_so_far.append("published")
            bench.publish(3 * BATCH)
        return loop.readiness()["policy_version"] == 2

    loop = bench.run(thaw)
    newest = bench.announced()[-1]
    assert (newest.version, newest.experiences, sum(newest.offsets.values())) == (2, 4 * BATCH, 4 * BATCH)
