"""The release guard counts the candidates that its gates refuse, until a version is released."""

import pytest

from tamiyo.models.checkpoint import GateResult, Verdict
from tamiyo.models.learning.learner import Learner
from tamiyo.schemas.errors import UpdateRejected
from tamiyo.streams.learner.gates import GoldenGate
from tamiyo.streams.learner.release_guard import KEPT_REFUSED, ReleaseGuard
from tamiyo.streams.settings import LearnerSettings
from tests.support.experiences import small_policy


def test_failures_count_until_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, policy = LearnerSettings(), small_policy()
    guard = ReleaseGuard(settings, Learner(policy, settings))
    guard.released(policy)
    failed = GateResult(gate="golden", verdict=Verdict.FAILED, reason="planted")
    with monkeypatch.context() as patched:
        patched.setattr(GoldenGate, "check", lambda self, comparison: failed)
        for _ in range(KEPT_REFUSED + 2):
            with pytest.raises(UpdateRejected):
                guard.check(policy)
    guard.check(policy)
    record = guard.release_record()
    assert len(record.refused) == KEPT_REFUSED
    assert record.metrics() == {
        "gates/finite": 1.0, "gates/divergence": 0.0, "gates/golden": 1.0, "gates/off_policy": 0.0,
        "gates_failed/golden": KEPT_REFUSED + 2,
    }  # fmt: skip
    guard.released(policy)
    assert not guard.release_record().failures
