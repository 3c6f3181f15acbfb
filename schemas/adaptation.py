"""Decisions, the kernels they request, their outcomes at the host, and operators' commands."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from tamiyo.schemas.record import Count, Id, Ids, Milliseconds, NonNegative, Ratio, Real, Record, Tensor, Text

ALL_RUNS = "*"
"""The run_id of a control command that applies to every run."""


class DecisionType(StrEnum):
    """The five types of action."""

    NO_OP = "no_op"
    LOAD_KERNEL = "load_kernel"
    UNLOAD_KERNEL = "unload_kernel"
    FOSSILIZE_KERNEL = "fossilize_kernel"
    OPTIMIZE_PARAMETERS = "optimize_parameters"


class Action(Record):
    """One action: a type, at a layer unless it is no_op, with a blueprint if it is load_kernel."""

    type: Annotated[Id, Field(description="A DecisionType; a string, so that an unknown one can be rejected by name.")]
    layer_id: Annotated[Id | None, Field(description="The layer to adapt; null for no_op.")] = None
    blueprint: Annotated[Id | None, Field(description="The blueprint to load; for load_kernel only.")] = None


class Veto(Record):
    """A reason not to execute an action."""

    by: Annotated[Id, Field(description="The check that vetoed: safety_monitor, uncertainty, control, ...")]
    reason: Annotated[Text, Field(description="Why, in words.")]


class AdaptationDecision(Record):
    """One decision about a run, with everything needed to recompute and evaluate it."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    decision_id: Annotated[Id, Field(description="Hash of the graph's id.")]
    graph_id: Annotated[Id, Field(description="The graph it decides on.")]
    step: Annotated[Count, Field(description="The graph's step.")]
    time_ms: Annotated[Milliseconds, Field(description="The graph's event time, ms since the epoch, UTC.")]
    type: Annotated[Id, Field(description="The DecisionType to execute; no_op if vetoed.")]
    layer_id: Annotated[Id | None, Field(description="The layer to adapt; null for no_op.")] = None
    blueprint: Annotated[Id | None, Field(description="The blueprint to load, for load_kernel.")] = None
    kernel_id: Annotated[Id | None, Field(description="The kernel to compile, for load_kernel.")] = None
    proposed: Annotated[Action, Field(description="The sampled action, before any veto.")]
    vetoes: Annotated[
        list[Veto], Field(max_length=20, description="Why the sampled action is not executed; empty if it is.")
    ] = []
    dry_run: Annotated[bool, Field(description="Recorded only: the host must not execute it.")] = False
    orders: Annotated[
        dict[str, Milliseconds],
        Field(max_length=2, description="Control commands in force: * or the run, and each command's time_ms."),
    ] = {}
    confidence: Annotated[Ratio, Field(description="1 - uncertainty.")]
    uncertainty: Annotated[Ratio, Field(description="Calibrated half-width of the predicted reward, in [0, 1].")]
    urgency: Annotated[
        Ratio,
        Field(description="How soon the layer needs attention, from the health of it and its neighbours, in [0, 1]."),
    ]
    predicted_reward: Annotated[Real, Field(description="Ensemble mean at the action, in [-1, 1].")]
    value: Annotated[Real, Field(description="The value head's estimate for the graph.")]
    method: Annotated[Id, Field(description="policy or baseline: which of them set the action's probability.")]
    policy_version: Annotated[Count, Field(description="Version of the policy that decided.")]
    seed: Annotated[Count, Field(description="Seed of the sampling: a hash of the decision id.")]
    temperature: Annotated[NonNegative, Field(description="Temperature of the softmax.")]
    layers: Annotated[Ids, Field(description="Layers of the graph, in its order.")]
    kinds: Annotated[
        Ids,
        Field(description="Kinds of action at one layer, in order, e.g. load_kernel:low_rank."),
    ]
    action_index: Annotated[
        Count, Field(description="Position of the sampled action: 0 is no_op, else 1 + node * len(kinds) + kind.")
    ]
    mask: Annotated[bytes, Field(description="One byte per action: 1 legal, 0 not.")]
    probabilities: Annotated[Tensor, Field(description="[actions]: the distribution that was sampled from.")]
    log_probability: Annotated[Real, Field(description="Of the sampled action, nats.")]
    entropy: Annotated[NonNegative, Field(description="Of the distribution, nats.")]
    explanation: Annotated[Text, Field(description="The reason for the decision, in words.")] = ""


class KernelStatus(StrEnum):
    """Result of a kernel request."""

    COMPILED = "compiled"
    REFUSED = "refused"


class CompiledKernel(Record):
    """A kernel in the kernel store, or the reason why it was not compiled."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    kernel_id: Annotated[Id, Field(description="Hash of the decision's id; the kernel's name in the store.")]
    decision_id: Annotated[Id, Field(description="The decision that requested it.")]
    layer_id: Annotated[Id, Field(description="The layer it was built for.")]
    blueprint: Annotated[Id, Field(description="The blueprint it was built from.")]
    status: Annotated[KernelStatus, Field(description="Whether the kernel was compiled.")]
    reason: Annotated[Text, Field(description="Why it was refused; empty if it was compiled.")] = ""
    checksum: Annotated[str, Field(max_length=64, description="SHA-256 of the stored bytes, hex.")] = ""
    size_bytes: Annotated[Count, Field(description="Size of the stored file.")] = 0
    parameters: Annotated[Count, Field(description="Trainable parameters.")] = 0
    compile_time_ms: Annotated[NonNegative, Field(description="Duration of the build and its checks, ms.")] = 0.0


class OutcomeStatus(StrEnum):
    """Result of a decision at the host."""

    EXECUTED = "executed"
    REFUSED = "refused"
    FAILED = "failed"


class AdaptationOutcome(Record):
    """How the host handled a decision other than no_op."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    outcome_id: Annotated[Id, Field(description="Hash of the decision's id.")]
    decision_id: Annotated[Id, Field(description="The decision that the host handled.")]
    step: Annotated[Count, Field(description="Step at which it was executed, refused or failed.")]
    time_ms: Annotated[Milliseconds, Field(description="When it was handled, ms since the epoch, UTC.")]
    type: Annotated[Id, Field(description="The decision's type.")]
    layer_id: Annotated[Id | None, Field(description="The decision's layer.")] = None
    blueprint: Annotated[Id | None, Field(description="The decision's blueprint.")] = None
    kernel_id: Annotated[Id | None, Field(description="The kernel loaded or unloaded.")] = None
    status: Annotated[OutcomeStatus, Field(description="Whether it was executed.")]
    reason: Annotated[Text, Field(description="Why it was refused or failed; empty if it was executed.")] = ""
    before: Annotated[
        dict[str, Real],
        Field(description="Measurements before: loss (held-out, nats), latency_ms (layer), parameters, ..."),
    ] = {}
    after: Annotated[
        dict[str, Real], Field(description="The same measurements right after; empty if it was not executed.")
    ] = {}
    duration_ms: Annotated[NonNegative, Field(description="How long training paused for it, ms.")] = 0.0


class ControlCommand(Record):
    """An operator's standing order for a run, or * for all runs; the newest one of a key is in force."""

    run_id: Annotated[
        str,
        StringConstraints(max_length=200, pattern=r"^(\*|\w[\w.:/\-]*)$"),
        Field(description="The run it applies to, or * for all; also the message key."),
    ]
    time_ms: Annotated[Milliseconds, Field(description="When it was issued, ms since the epoch, UTC.")]
    paused: Annotated[bool, Field(description="No adaptations: every action but no_op is masked.")] = False
    dry_run: Annotated[bool, Field(description="Decide and record, but execute nothing.")] = False
    protected_layers: Annotated[
        Ids, Field(description="Layers that must not be adapted, in addition to the run's own.")
    ] = []
    issued_by: Annotated[Text, Field(description="Who issued it.")] = ""
    reason: Annotated[Text, Field(description="Why it was issued.")] = ""
