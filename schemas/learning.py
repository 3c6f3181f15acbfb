"""Rewards, experiences, and the policies learned from them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.record import Count, Id, Milliseconds, NonNegative, Ratio, Real, Record, Tensor, Text


class SpanReward(Record):
    """Reward of a decision over one time span after it."""

    name: Annotated[Id, Field(description="immediate, short_term, medium_term or long_term.")]
    weight: Annotated[Ratio, Field(description="Weight before renormalising over the measured spans.")]
    start: Annotated[NonNegative, Field(description="Start after the decision, in the clock's unit.")]
    end: Annotated[
        NonNegative | None, Field(description="End after the decision, in the clock's unit; null: open.")
    ] = None
    seen: Annotated[bool, Field(description="Whether it was measured; false means unknown, not zero.")]
    windows: Annotated[Count, Field(description="Windows in the span.")] = 0
    components: Annotated[dict[str, Real], Field(description="Values by component name, before weighting.")] = {}
    total: Annotated[Real, Field(description="Weighted sum of components, before tanh.")] = 0.0


class RewardAnalysis(Record):
    """Reward of a decision, as far as it is known."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    analysis_id: Annotated[Id, Field(description="Hash of decision and revision.")]
    decision_id: Annotated[Id, Field(description="The decision that is rewarded.")]
    revision: Annotated[
        Count, Field(description="0 for the first completed span, then rising; the highest is current.")
    ]
    step: Annotated[Count, Field(description="The decision's step.")]
    time_ms: Annotated[Milliseconds, Field(description="Event time of the last window used, ms since the epoch, UTC.")]
    action: Annotated[Action, Field(description="The action that was executed, or requested and refused.")]
    status: Annotated[Id, Field(description="executed, refused, failed, vetoed, or none for no_op.")]
    components: Annotated[dict[str, Real], Field(description="Means over the measured spans, before weighting.")]
    weights: Annotated[dict[str, Real], Field(description="Weight of each component; the same keys.")]
    spans: Annotated[list[SpanReward], Field(max_length=16, description="All spans, measured or not.")]
    total: Annotated[
        Real, Field(ge=-1, le=1, description="tanh of the weighted sum over the measured spans, in [-1, 1].")
    ]
    confidence: Annotated[Ratio, Field(description="Share of the span weight measured, reduced for noisy baselines.")]
    improvement: Annotated[
        Real | None,
        Field(description="Loss reduction relative to the run without the adaptation; null: unknown."),
    ] = None
    predicted_reward: Annotated[Real, Field(description="Reward that the policy expected.")] = 0.0
    worth: Annotated[
        Real | None,
        Field(
            description="Gain in the run's final objective less costs, nats of log loss; the worths of a run add up to "
            "what it gained over never adapting. Null: unknown."
        ),
    ] = None
    worth_half_width: Annotated[
        NonNegative | None, Field(description="Half of the 90 % interval of the worth, nats; null: not estimated.")
    ] = None
    estimator: Annotated[Text, Field(description="Version of the gain's estimator; empty: nothing estimated.")] = ""
    complete: Annotated[bool, Field(description="No later revision will come.")] = False
    explanation: Annotated[Text, Field(description="The reason for the reward, in words.")] = ""
    task: Annotated[Text, Field(description="What the run trains, from its topology; empty: not known.")] = ""


class Experience(Record):
    """One decision with its reward: what the learner learns from. The highest revision of an id is current."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    experience_id: Annotated[Id, Field(description="The decision's id.")]
    revision: Annotated[Count, Field(description="Revision of the reward analysis.")]
    time_ms: Annotated[Milliseconds, Field(description="Event time of the last window used, ms since the epoch, UTC.")]
    graph: Annotated[ModelGraph, Field(description="The graph that the policy decided on.")]
    kinds: Annotated[list[Id], Field(max_length=200, description="Kinds of action at one layer, in order.")]
    action_index: Annotated[Count, Field(description="Position of the sampled action.")]
    mask: Annotated[bytes, Field(description="One byte per action: 1 legal, 0 not.")]
    probabilities: Annotated[Tensor, Field(description="[actions]: the distribution that was sampled from.")]
    policy_version: Annotated[Count, Field(description="Checkpoint that decided.")]
    value: Annotated[Real, Field(description="The value head's estimate then.")]
    reward: Annotated[Real, Field(ge=-1, le=1, description="The analysis' total.")]
    confidence: Annotated[Ratio, Field(description="Confidence of the reward analysis, in [0, 1].")]
    worth: Annotated[
        Real | None, Field(description="The analysis' worth, nats; what the learner maximises where it is known.")
    ] = None
    success: Annotated[
        bool | None, Field(description="Whether the run measurably improved; null: nothing was executed.")
    ] = None
    complete: Annotated[bool, Field(description="No later revision will come.")] = False
    components: Annotated[dict[str, Real], Field(description="The analysis' components, before weighting.")] = {}
    improvement: Annotated[
        Real | None, Field(description="Loss reduction relative to the run without the adaptation; null: unknown.")
    ] = None
    predicted_reward: Annotated[Real, Field(description="Reward that the policy expected.")] = 0.0
    task: Annotated[Text, Field(description="What the run trains, from its topology; empty: not known.")] = ""


class CheckpointStatus(StrEnum):
    """Whether a checkpoint may act."""

    RELEASED = "released"
    ROLLED_BACK = "rolled_back"


def policy_orders_key(name: str) -> str:
    """Return the message key of an operator's orders about a policy: a PolicyCheckpoint with `pinned` and `frozen`."""
    return f"{name}:orders"


class PolicyCheckpoint(Record):
    """A released policy: where it is stored, and what it was learned from. Or an operator's orders about a policy."""

    name: Annotated[
        Id, Field(description="The policy's name; also the message key, with :orders added for an operator's orders.")
    ]
    version: Annotated[Count, Field(description="Rises by one with every release.")]
    parent_version: Annotated[Count | None, Field(description="Version it was learned from; null for the first.")] = (
        None
    )
    time_ms: Annotated[Milliseconds, Field(description="When it was released, ms since the epoch, UTC.")]
    status: Annotated[CheckpointStatus, Field(description="Whether the checkpoint may act.")]
    file: Annotated[Id, Field(description="File name in the checkpoint store; never a path.")]
    checksum: Annotated[str, Field(max_length=64, description="SHA-256 of the stored bytes, hex.")]
    size_bytes: Annotated[Count, Field(description="Size of the stored file.")]
    feature_version: Annotated[Count, Field(description="Version of the feature catalogue that it reads.")]
    blueprints: Annotated[list[Id], Field(max_length=200, description="Blueprints that it can load, in order.")]
    offsets: Annotated[dict[str, Count], Field(description="Next offset of the experience topic, by partition.")]
    experiences: Annotated[Count, Field(description="Experiences learned from so far.")] = 0
    updates: Annotated[Count, Field(description="Updates accepted so far.")] = 0
    metrics: Annotated[
        dict[str, Real],
        Field(
            description="losses/... and charts/... of the last update; gates/...: 1 for a release gate passed, 0 for "
            "one without evidence; gates_failed/...: candidates that failed it since the parent."
        ),
    ] = {}
    fallback_version: Annotated[
        Count | None,
        Field(
            description="Version that decides after a rollback, and outside the canary share until then; null: the one "
            "before."
        ),
    ] = None
    fallback_checksum: Annotated[
        str, Field(max_length=64, description="SHA-256 of the fallback's stored bytes, hex; empty without one.")
    ] = ""
    pinned: Annotated[bool, Field(description="In orders: decisions use this version, whatever is released.")] = False
    frozen: Annotated[bool, Field(description="In orders: the learner reads, but learns and releases nothing.")] = False
    issued_by: Annotated[Text, Field(description="Who gave the orders, or rolled back; empty: the learner.")] = ""
    reason: Annotated[Text, Field(description="Why, in words.")] = ""
