"""What the learner's process releases: gates, rollback from live rewards, operators' orders."""

from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from tamiyo.models.checkpoint import GateResult, Verdict, load
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.learner import loop as loop_module
from tamiyo.streams.learner.gates import GoldenGate
from tamiyo.streams.learner.loop import LearnerLoop
from tests.streams.learner.bench import BATCH, Bench, done


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


def test_after_many_failures_the_same_policy_is_released_with_what_was_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the offsets would stay behind, and a restart read ever more again."""
    failed = GateResult(gate="golden", verdict=Verdict.FAILED, reason="planted")
    monkeypatch.setattr(GoldenGate, "check", lambda self, comparison: failed)
    monkeypatch.setattr(loop_module, "REFUSED", 3)
    bench.publish(0, 4 * BATCH)
    bench.learn(4 * BATCH)
    assert [(each.version, each.experiences) for each in bench.announced()] == [(0, 0), (1, 3 * BATCH)]
    (first, _), (second, header) = (load(bench.store.read(bench.store.file_name(n)))[:2] for n in range(2))
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())
    assert sum(header.offsets.values()) == 3 * BATCH
    assert len(header.release.refused) == 3
    loop = bench.run(lambda loop: loop.ready and done(loop, 4 * BATCH))
    assert loop.learner is not None
    assert loop.learner.rolled_back == 1  # the last batch again, and no other


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
