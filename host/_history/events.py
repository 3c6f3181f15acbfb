"""What happens to an attached run: adaptation events, and the scalars of its frames."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EventKind(StrEnum):
    """Kinds of events: the outcome of a decision, a change of the network, a kernel's error, the end of the run."""

    EXECUTED = "executed"
    REFUSED = "refused"
    FAILED = "failed"
    KERNEL_ADDED = "kernel_added"
    KERNEL_REMOVED = "kernel_removed"
    KERNEL_ERROR = "kernel_error"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptationEvent:
    """Something that happened to the network of an attached run, or was refused.

    `executed`, `refused` and `failed` are outcomes of decisions. `kernel_added` and `kernel_removed` follow every
    change of the set of kernels, whatever its cause: a decision, the end of a ramp, a recovery, a restored state. Code
    that keeps a copy of the parameters (weight averaging) needs these two only.

    Attributes:
        kind: An `EventKind`; it equals its value, such as "executed".
        run_id: The run.
        step: Steps completed when it happened.
        time_ms: Time of the event, milliseconds since the epoch, UTC.
        layer_id: The layer concerned; None for `closed`.
        decision: Type of the decision, such as "load_kernel"; None if the event is not the outcome of one.
        decision_id: The decision; None if the event is not the outcome of one.
        blueprint: Blueprint of the kernel, if there is one.
        kernel_id: The kernel, if there is one.
        seed_id: Index of the kernel's seed at the layer; None for outcomes of decisions.
        reason: Why it was refused or failed, or the kernel's error and how it was handled; else empty.
        parameters_before: Trainable numbers of the network before, kernels included.
        parameters_after: Trainable numbers of the network after.
        loss_before: Loss on the held-out batch before, nats; None if it was not measured.
        loss_after: The same after.
    """

    kind: EventKind
    run_id: str
    step: int
    time_ms: int
    parameters_before: int
    parameters_after: int
    layer_id: str | None = None
    decision: str | None = None
    decision_id: str | None = None
    blueprint: str | None = None
    kernel_id: str | None = None
    seed_id: int | None = None
    reason: str = ""
    loss_before: float | None = None
    loss_after: float | None = None

    def __str__(self) -> str:
        """Return one line for people."""
        what = " ".join(part for part in (self.decision or self.kind, self.blueprint) if part)
        if self.layer_id is not None:
            what += f" at layer {self.layer_id}"
        if self.decision is not None:
            what += f": {self.kind}"
        grown = self.parameters_after - self.parameters_before
        change = f", {grown:+,} parameters" if grown else ""
        return f"step {self.step}: {what}{change}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScalars:
    """The scalars of one telemetry frame: means over the steps since the frame before it.

    Attributes:
        step: Steps completed.
        epoch: Passes over the training data begun.
        time_ms: Time of the frame, milliseconds since the epoch, UTC.
        train_loss: Mean loss of the training batches, nats.
        train_accuracy: Mean accuracy of the training batches, 0..1, if the loop passes it.
        validation_loss: Loss of the last validation, nats, if there was one since the frame before.
        validation_accuracy: Accuracy of the last validation, 0..1.
        throughput: Samples a second.
        step_time_ms: Duration of a step, ms.
        parameters: Trainable numbers of the network, kernels included.
        kernel_parameters: Trainable numbers of the kernels.
        overhead_ratio: Time in the SDK divided by time of training, since the run began.
    """

    step: int
    epoch: int
    time_ms: int
    train_loss: float
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    throughput: float
    step_time_ms: float
    parameters: int
    kernel_parameters: int
    overhead_ratio: float
