"""Decisions, the kernels they ask for, and what came of them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from tamiyo.schemas.record import Count, Id, Ids, Milliseconds, NonNegative, Ratio, Real, Record, Tensor, Text

ALL_RUNS = "*"
"""The run_id of a control command for every run."""


class DecisionType(StrEnum):
    """The five kinds of action."""

    NO_OP = "no_op"
    LOAD_KERNEL = "load_kernel"
    UNLOAD_KERNEL = "unload_kernel"
    FOSSILIZE_KERNEL = "fossilize_kernel"
    OPTIMIZE_PARAMETERS = "optimize_parameters"


class Action(Record):
    """One entry of the flat action list."""

    type: Annotated[Id, Field(description="A DecisionType; a string, so that an unknown one can be refused by name.")]
    layer_id: Annotated[Id | None, Field(description="Null for no_op.")] = None
    blueprint: Annotated[Id | None, Field(description="For load_kernel.")] = None


class Veto(Record):
    """Who forbade an action, and why."""

    by: Annotated[Id, Field(description="safety_monitor, uncertainty, control, ...")]
    reason: Text


class AdaptationDecision(Record):
    """What is to be done to a run, and everything needed to recompute and judge it."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    decision_id: Annotated[Id, Field(description="Hash of the graph's id.")]
    graph_id: Annotated[Id, Field(description="The graph it answers.")]
    step: Annotated[Count, Field(description="The graph's step.")]
    time_ms: Annotated[Milliseconds, Field(description="The graph's event time, ms since the epoch, UTC.")]
    type: Annotated[Id, Field(description="What is to be executed, a DecisionType; no_op where vetoed.")]
    layer_id: Annotated[Id | None, Field(description="The layer to adapt; null for no_op.")] = None
    blueprint: Annotated[Id | None, Field(description="What to load, for load_kernel.")] = None
    kernel_id: Annotated[Id | None, Field(description="The kernel that will be compiled, for load_kernel.")] = None
    proposed: Annotated[Action, Field(description="What was sampled, before any veto.")]
    vetoes: Annotated[list[Veto], Field(max_length=20, description="Who forbade it, and why.")] = []
    dry_run: Annotated[bool, Field(description="Recorded only; a host must not execute it.")] = False
    orders: Annotated[
        dict[str, Milliseconds],
        Field(max_length=2, description="Standing orders in force: * or the run, and the order's time_ms."),
    ] = {}
    confidence: Annotated[Ratio, Field(description="1 - uncertainty.")]
    uncertainty: Annotated[Ratio, Field(description="Calibrated half-width of the predicted reward.")]
    urgency: Annotated[Ratio, Field(description="From health and trend of the layer and its neighbours.")]
    predicted_reward: Annotated[Real, Field(description="Ensemble mean for the action, in [-1, 1].")]
    value: Annotated[Real, Field(description="The value head's estimate for the graph.")]
    method: Annotated[Id, Field(description="policy or baseline: whose probabilities prevailed at the action.")]
    policy_version: Annotated[Count, Field(description="Checkpoint that computed this.")]
    seed: Annotated[Count, Field(description="Sampling seed, a hash of the decision id.")]
    temperature: Annotated[NonNegative, Field(description="Of the softmax.")]
    layers: Annotated[Ids, Field(description="Nodes of the graph, in order.")]
    kinds: Annotated[
        Ids,
        Field(description="Actions a layer, in order, e.g. load_kernel:low_rank; entry 0 of the list is no_op."),
    ]
    action_index: Annotated[Count, Field(description="0 is no_op, else 1 + node * len(kinds) + kind.")]
    mask: Annotated[bytes, Field(description="One byte an action: 1 legal, 0 not.")]
    probabilities: Annotated[Tensor, Field(description="[actions]: the distribution actually sampled from.")]
    log_probability: Annotated[Real, Field(description="Of the sampled action, nats.")]
    entropy: Annotated[NonNegative, Field(description="Of the distribution, nats.")]
    explanation: Text = ""


class KernelStatus(StrEnum):
    """What became of a kernel request."""

    COMPILED = "compiled"
    REFUSED = "refused"


class CompiledKernel(Record):
    """A kernel ready in the kernel store, or why there is none."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    kernel_id: Annotated[Id, Field(description="Hash of the decision's id; its name in the store.")]
    decision_id: Annotated[Id, Field(description="The decision that asked for it.")]
    layer_id: Annotated[Id, Field(description="The layer it was built for.")]
    blueprint: Annotated[Id, Field(description="What it was built from.")]
    status: KernelStatus
    reason: Annotated[Text, Field(description="Why it was refused.")] = ""
    checksum: Annotated[str, Field(max_length=64, description="SHA-256 of the stored bytes, hex.")] = ""
    size_bytes: Annotated[Count, Field(description="Of the stored file.")] = 0
    parameters: Annotated[Count, Field(description="Trainable parameters.")] = 0
    compile_time_ms: Annotated[NonNegative, Field(description="Build and check, ms.")] = 0.0


class OutcomeStatus(StrEnum):
    """How a decision ended at the host."""

    EXECUTED = "executed"
    REFUSED = "refused"
    FAILED = "failed"


class AdaptationOutcome(Record):
    """What the host did with a decision that asked for something."""

    run_id: Annotated[Id, Field(description="The training run; also the message key.")]
    outcome_id: Annotated[Id, Field(description="Hash of the decision's id.")]
    decision_id: Annotated[Id, Field(description="The decision this answers.")]
    step: Annotated[Count, Field(description="Step at which it was executed or given up.")]
    time_ms: Annotated[Milliseconds, Field(description="When, ms since the epoch, UTC.")]
    type: Annotated[Id, Field(description="The decision's type.")]
    layer_id: Annotated[Id | None, Field(description="The decision's layer.")] = None
    blueprint: Annotated[Id | None, Field(description="The decision's blueprint.")] = None
    kernel_id: Annotated[Id | None, Field(description="The kernel loaded or unloaded.")] = None
    status: OutcomeStatus
    reason: Annotated[Text, Field(description="Why it was refused or failed.")] = ""
    before: Annotated[
        dict[str, Real],
        Field(description="loss (held-out, nats), latency_ms (layer), parameters, ... before."),
    ] = {}
    after: Annotated[dict[str, Real], Field(description="The same right after; empty where nothing was done.")] = {}
    duration_ms: Annotated[NonNegative, Field(description="How long training was held up, ms.")] = 0.0


class ControlCommand(Record):
    """An operator's standing order; the newest under a key holds. Key: a run_id, or * for all runs."""

    run_id: Annotated[
        str,
        StringConstraints(max_length=200, pattern=r"^(\*|\w[\w.:/\-]*)$"),
        Field(description="The run it is for, or * for all; the message key."),
    ]
    time_ms: Annotated[Milliseconds, Field(description="When it was given, ms since the epoch, UTC.")]
    paused: Annotated[bool, Field(description="No adaptations at all: every action but no_op is masked.")] = False
    dry_run: Annotated[bool, Field(description="Decide and record, but execute nothing.")] = False
    protected_layers: Annotated[Ids, Field(description="Layers that must not be adapted, beside the run's own.")] = []
    issued_by: Text = ""
    reason: Text = ""
