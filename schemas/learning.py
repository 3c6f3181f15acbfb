"""Rewards, experience, and the policies learned from them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.record import Count, Id, Milliseconds, NonNegative, Ratio, Real, Record, Tensor, Text


class SpanReward(Record):
    """What a decision was worth over one time span after it."""

    name: Annotated[Id, Field(description="immediate, short_term, medium_term or long_term.")]
    weight: Annotated[Ratio, Field(description="Before renormalising over the spans seen.")]
    start: Annotated[NonNegative, Field(description="Begin after the decision, in the clock's unit.")]
    end: Annotated[NonNegative | None, Field(description="End after the decision; null: open.")] = None
    seen: Annotated[bool, Field(description="False: unknown, which is not zero.")]
    windows: Annotated[Count, Field(description="Windows that lay in it.")] = 0
    components: Annotated[dict[str, Real], Field(description="By component name, before weights.")] = {}
    total: Annotated[Real, Field(description="Weighted sum of components, before tanh.")] = 0.0


class RewardAnalysis(Record):
    """What a decision was worth, as far as is known."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    analysis_id: Annotated[Id, Field(description="Hash of decision and revision.")]
    decision_id: Annotated[Id, Field(description="The decision judged.")]
    revision: Annotated[Count, Field(description="0 for the first span closed, and up; the highest holds.")]
    step: Annotated[Count, Field(description="The decision's step.")]
    time_ms: Annotated[Milliseconds, Field(description="Event time of the last window used.")]
    action: Annotated[Action, Field(description="What was executed, or asked for and refused.")]
    status: Annotated[Id, Field(description="executed, refused, failed, vetoed, or none for no_op.")]
    components: Annotated[dict[str, Real], Field(description="Mean over the spans seen, before weights.")]
    weights: Annotated[dict[str, Real], Field(description="Of each component; the same keys.")]
    spans: Annotated[list[SpanReward], Field(max_length=16, description="All spans, seen or not.")]
    total: Annotated[Real, Field(ge=-1, le=1, description="tanh of the weighted sum over the spans seen.")]
    confidence: Annotated[Ratio, Field(description="Share of the span weight seen, less for noisy baselines.")]
    improvement: Annotated[
        Real | None,
        Field(description="Relative loss reduction against the projected baseline; null: unknown."),
    ] = None
    predicted_reward: Annotated[Real, Field(description="What the policy expected.")] = 0.0
    complete: Annotated[bool, Field(description="No later revision will come.")] = False
    explanation: Text = ""


class Experience(Record):
    """One decision with its reward, as the learner takes it. The highest revision under an id holds."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    experience_id: Annotated[Id, Field(description="The decision's id.")]
    revision: Annotated[Count, Field(description="That of the reward analysis.")]
    time_ms: Annotated[Milliseconds, Field(description="Event time of the last window used.")]
    graph: Annotated[ModelGraph, Field(description="What the policy saw.")]
    kinds: Annotated[list[Id], Field(max_length=200, description="Actions a layer, in order.")]
    action_index: Annotated[Count, Field(description="What was sampled.")]
    mask: Annotated[bytes, Field(description="One byte an action: 1 legal, 0 not.")]
    probabilities: Annotated[Tensor, Field(description="[actions]: the behaviour distribution.")]
    policy_version: Annotated[Count, Field(description="Checkpoint that decided.")]
    value: Annotated[Real, Field(description="The value head's estimate then.")]
    reward: Annotated[Real, Field(ge=-1, le=1, description="The analysis' total.")]
    confidence: Annotated[Ratio, Field(description="The analysis' confidence.")]
    success: Annotated[bool | None, Field(description="Measurably improved; null: nothing was executed.")] = None
    complete: Annotated[bool, Field(description="No later revision will come.")] = False


class CheckpointStatus(StrEnum):
    """Whether a checkpoint may act."""

    RELEASED = "released"
    ROLLED_BACK = "rolled_back"


class PolicyCheckpoint(Record):
    """A policy that may act: where it is, and what it was learned from."""

    name: Annotated[Id, Field(description="The policy's name; also the message key.")]
    version: Annotated[Count, Field(description="Rises by one with every release.")]
    parent_version: Annotated[Count | None, Field(description="What it was learned from; null for the first.")] = None
    time_ms: Annotated[Milliseconds, Field(description="When it was released, ms since the epoch, UTC.")]
    status: CheckpointStatus
    file: Annotated[Id, Field(description="Its name in the checkpoint store; never a path.")]
    checksum: Annotated[str, Field(max_length=64, description="SHA-256 of the stored bytes, hex.")]
    size_bytes: Count
    feature_version: Annotated[Count, Field(description="Of the feature catalogue it reads.")]
    blueprints: Annotated[list[Id], Field(max_length=200, description="Blueprints it can choose, in order.")]
    offsets: Annotated[dict[str, Count], Field(description="Next offset of the experience topic, by partition.")]
    experiences: Annotated[Count, Field(description="Experiences consumed in all.")] = 0
    updates: Annotated[Count, Field(description="Learning steps accepted in all.")] = 0
    metrics: Annotated[dict[str, Real], Field(description="losses/..., charts/... of the last update.")] = {}
