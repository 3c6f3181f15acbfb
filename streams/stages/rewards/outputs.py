"""Build the records that the rewards stage publishes from a reward estimate."""

from tamiyo.schemas.adaptation import Action, AdaptationDecision
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import analysis_id
from tamiyo.schemas.learning import Experience, RewardAnalysis
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.attribution import RewardEstimate
from tamiyo.streams.stages.rewards.explanation import explain_reward
from tamiyo.streams.stages.rewards.status import RewardStatus


def make_analysis(
    decision: AdaptationDecision,
    status: RewardStatus,
    estimate: RewardEstimate,
    *,
    revision: int,
    complete: bool,
    task: str = "",
    reason: str = "",
) -> RewardAnalysis:
    """Return the analysis of a decision.

    Args:
        decision: The decision rewarded.
        status: How it ended.
        estimate: Its reward.
        revision: Count of earlier analyses of the same decision.
        complete: Whether this is the last revision.
        task: What the run trains; empty if it is not known.
        reason: Why it was not executed, for the explanation.
    """
    executed = Action(type=decision.type, layer_id=decision.layer_id, blueprint=decision.blueprint)
    action = decision.proposed if status is RewardStatus.VETOED else executed
    return RewardAnalysis(
        run_id=decision.run_id,
        analysis_id=analysis_id(decision.decision_id, revision),
        decision_id=decision.decision_id,
        revision=revision,
        step=decision.step,
        time_ms=estimate.last.time_ms if estimate.last is not None else decision.time_ms,
        action=action,
        status=status.value,
        components=estimate.components,
        weights={name: rc.WEIGHTS[name] for name in estimate.components},
        spans=list(estimate.spans),
        total=estimate.total,
        confidence=estimate.confidence,
        improvement=estimate.improvement,
        predicted_reward=decision.predicted_reward,
        worth=estimate.worth,
        worth_half_width=estimate.half_width,
        estimator=estimate.estimator,
        complete=complete,
        explanation=explain_reward(action, status, estimate, reason=reason),
        task=task,
    )


def make_experience(
    decision: AdaptationDecision, graph: ModelGraph, analysis: RewardAnalysis, *, success: bool | None
) -> Experience:
    """Return the analysis as the learner needs it: what the policy saw, what it chose, and the reward.

    Args:
        decision: The decision rewarded.
        graph: The graph it was made on.
        analysis: Its reward.
        success: Whether the loss improved measurably; None if nothing was executed or nothing is known.
    """
    return Experience(
        run_id=decision.run_id,
        experience_id=decision.decision_id,
        revision=analysis.revision,
        time_ms=analysis.time_ms,
        graph=graph,
        kinds=decision.kinds,
        action_index=decision.action_index,
        mask=decision.mask,
        probabilities=decision.probabilities,
        policy_version=decision.policy_version,
        value=decision.value,
        reward=analysis.total,
        confidence=analysis.confidence,
        worth=analysis.worth,
        success=success,
        complete=analysis.complete,
        components=analysis.components,
        improvement=analysis.improvement,
        predicted_reward=analysis.predicted_reward,
        task=analysis.task,
    )


def is_informative(analysis: RewardAnalysis) -> bool:
    """Return whether the learner can use the analysis: a reward of which nothing is known teaches nothing."""
    return analysis.confidence > 0
