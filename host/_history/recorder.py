"""Records what happens to an attached run, and delivers it to callbacks between two steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from tamiyo.host._common import clock
from tamiyo.host._history.events import AdaptationEvent, EventKind, FrameScalars
from tamiyo.host._history.history import History, Subscribers
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._layers.recovery import RecoveryEvent
from tamiyo.schemas.adaptation import AdaptationOutcome

_FROM_FRAME = (
    "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "throughput", "step_time_ms",
    "parameters", "overhead_ratio",
)  # fmt: skip
"""Fields of ModelPerformance that the history keeps."""

_Kernel = tuple[str, int, str]
"""Layer, seed and id of a kernel."""


class RunRecorder:
    """Keeps the history of a run. What is recorded during a step reaches the callbacks at `deliver`, in order."""

    def __init__(self, run_id: str, model: AttachedModel) -> None:
        """Start with the kernels that the model has now."""
        self.history = History()
        self.on_event = Subscribers[AdaptationEvent]()
        self.on_frame = Subscribers[FrameScalars]()
        self._run_id = run_id
        self._model = model
        self._pending: deque[AdaptationEvent | FrameScalars] = deque()
        self._revision = model.revision
        self._kernels = self._loaded()

    def outcome(self, outcome: AdaptationOutcome) -> None:
        """Record the outcome of a decision."""
        own = self._model.base_parameters
        now = own + self._model.kernel_parameters
        before, after = (
            own + int(each.get("kernel_parameters", now - own)) for each in (outcome.before, outcome.after)
        )
        self._record(
            EventKind(outcome.status.value),
            outcome.step,
            before=before,
            # A decision that changed nothing has no measurement after it.
            after=after if outcome.after else before,
            layer_id=outcome.layer_id,
            decision=str(outcome.type),
            decision_id=outcome.decision_id,
            blueprint=outcome.blueprint,
            kernel_id=outcome.kernel_id,
            reason=outcome.reason,
            loss_before=outcome.before.get("loss"),
            loss_after=outcome.after.get("loss"),
        )

    def recovery(self, step: int, event: RecoveryEvent) -> None:
        """Record the error of a kernel."""
        result = "succeeded" if event.success else "failed"
        self._record(
            EventKind.KERNEL_ERROR,
            step,
            layer_id=event.layer_id,
            kernel_id=event.kernel_id or None,
            seed_id=event.seed_id,
            blueprint=self._kernels.get((event.layer_id, event.seed_id, event.kernel_id), ("", 0))[0] or None,
            reason=f"{event.error_type}: {event.message}; {event.strategy} {result}",
        )

    def kernels(self, step: int) -> None:
        """Record the kernels that have joined or left the network since the last call."""
        if self._model.revision == self._revision:
            return
        self._revision = self._model.revision
        known, self._kernels = self._kernels, self._loaded()
        count = self._model.base_parameters + sum(parameters for _, parameters in known.values())
        for kind, kernels, sign in (
            (EventKind.KERNEL_REMOVED, {k: v for k, v in known.items() if k not in self._kernels}, -1),
            (EventKind.KERNEL_ADDED, {k: v for k, v in self._kernels.items() if k not in known}, 1),
        ):
            for (layer_id, seed_id, kernel_id), (blueprint, parameters) in kernels.items():
                before, count = count, count + sign * parameters
                self._record(
                    kind, step, before=before, after=count,
                    layer_id=layer_id, seed_id=seed_id, kernel_id=kernel_id, blueprint=blueprint,
                )  # fmt: skip

    def closed(self, step: int) -> None:
        """Record the end of the run."""
        self._record(EventKind.CLOSED, step)

    def frame(self, step: int, epoch: int, model: Mapping[str, Any]) -> None:
        """Record the scalars of a frame.

        Args:
            step: Steps completed.
            epoch: Passes over the training data begun.
            model: Fields of ModelPerformance.
        """
        values = {name: model[name] for name in _FROM_FRAME}
        kernels = self._model.kernel_parameters
        self._pending.append(
            FrameScalars(step=step, epoch=epoch, time_ms=clock.time_ms(), kernel_parameters=kernels, **values)
        )

    def deliver(self) -> None:
        """Move what was recorded into the history, and call the callbacks. Call it between two steps."""
        while self._pending:
            entry = self._pending.popleft()
            self.history.add(entry)
            if isinstance(entry, AdaptationEvent):
                self.on_event.call(entry)
            else:
                self.on_frame.call(entry)

    @property
    def waiting(self) -> bool:
        """Whether `kernels` or `deliver` has anything to do."""
        return bool(self._pending) or self._model.revision != self._revision

    def _record(
        self, kind: EventKind, step: int, *, before: int | None = None, after: int | None = None, **more: Any
    ) -> None:
        now = self._model.base_parameters + self._model.kernel_parameters
        self._pending.append(
            AdaptationEvent(
                kind=kind,
                run_id=self._run_id,
                step=step,
                time_ms=clock.time_ms(),
                parameters_before=now if before is None else before,
                parameters_after=now if after is None else after,
                **more,
            )
        )

    def _loaded(self) -> dict[_Kernel, tuple[str, int]]:
        """Return blueprint and number of parameters of every kernel in the network."""
        return {
            (layer.layer_id, seed.index, seed.kernel_id): (seed.blueprint, seed.kernel.parameter_count)
            for layer in self._model.grown
            for seed in layer.seeds
            if seed.kernel is not None
        }
