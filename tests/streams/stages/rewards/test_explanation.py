from dataclasses import replace

import pytest

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.learning import SpanReward
from tamiyo.streams.stages.action_text import MAX_LENGTH
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.attribution import RewardEstimate, unexecuted
from tamiyo.streams.stages.rewards.explanation import explain_reward
from tamiyo.streams.stages.rewards.spans import make_spans
from tamiyo.streams.stages.rewards.status import RewardStatus

LOAD = Action(type="load_kernel", layer_id="0", blueprint="parallel_expansion")
NO_OP = Action(type="no_op")
SPANS = make_spans((100, 400, 1000, 2000))
ESTIMATE = RewardEstimate(
    spans=tuple(SpanReward(name=s.name, weight=s.weight, start=s.start, end=s.end, seen=s.start < 400) for s in SPANS),
    components={rc.ACCURACY: 0.16, rc.SPEED: 0.008, rc.MEMORY: -0.125, rc.STABILITY: 0, rc.COST: 0.44, rc.RISK: 0.04},
    total=-0.03,
    confidence=0.87,
    improvement=0.035,
    success=True,
    last=None,
)


def test_an_executed_adaptation() -> None:
    assert explain_reward(LOAD, RewardStatus.EXECUTED, ESTIMATE) == (
        "Loading parallel_expansion at layer 0 lowered the loss by 3.5% compared with the run without it (2 of 4 "
        "spans). Reward -0.03: lower loss +0.16, cost -0.13, parameters -0.05, risk -0.02 (confidence 87%)."
    )


def test_a_worth_is_shown_with_its_interval() -> None:
    worth = replace(ESTIMATE, worth=0.124, half_width=0.05, estimator="fitted-1")
    assert "spans). Worth +0.12 +- 0.05 nats by the end of the run. Reward -0.03" in explain_reward(
        LOAD, RewardStatus.EXECUTED, worth
    )


def test_an_adaptation_that_raised_the_loss() -> None:
    worse = replace(ESTIMATE, improvement=-0.1, total=-0.6, components={rc.ACCURACY: -0.7})
    assert explain_reward(LOAD, RewardStatus.EXECUTED, worse) == (
        "Loading parallel_expansion at layer 0 raised the loss by 10.0% compared with the run without it (2 of 4 "
        "spans). Reward -0.60: higher loss -0.70 (confidence 87%)."
    )


def test_an_adaptation_without_a_measured_loss() -> None:
    unknown = replace(ESTIMATE, improvement=None, components={}, total=0.0)
    assert explain_reward(LOAD, RewardStatus.EXECUTED, unknown) == (
        "Loading parallel_expansion at layer 0 was executed. Reward unknown: no loss has been measured since."
    )


@pytest.mark.parametrize(
    ("status", "reason", "text"),
    [
        ("refused", "parameter budget", "was refused by the host: parameter budget. Reward -0.05."),
        ("failed", "", "failed: no reason was given. Reward -0.10."),
        ("vetoed", "uncertainty 0.900", "was vetoed: uncertainty 0.900. Reward -0.05."),
        ("dry_run", "", "was recorded only (dry run). Reward unknown: it was not executed."),
    ],
)
def test_what_was_not_executed(status: str, reason: str, text: str) -> None:
    estimate = unexecuted(RewardStatus(status), SPANS)
    explanation = explain_reward(LOAD, RewardStatus(status), estimate, reason=reason)
    assert explanation == f"Loading parallel_expansion at layer 0 {text}"


def test_no_op() -> None:
    assert explain_reward(NO_OP, RewardStatus.NONE, unexecuted(RewardStatus.NONE, SPANS)) == (
        "No adaptation. Reward 0 by definition: every other reward is relative to it."
    )


def test_an_explanation_fits_its_field() -> None:
    estimate = unexecuted(RewardStatus.FAILED, SPANS)
    assert len(explain_reward(LOAD, RewardStatus.FAILED, estimate, reason="x" * 2000)) == MAX_LENGTH
