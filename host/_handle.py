"""The handle of an attached run: the training loop calls it after each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import Tensor, nn

from tamiyo.host._adaptation.adapter import Adapter
from tamiyo.host._client.transport import Transport
from tamiyo.host._common.call_stack import within_step_hook
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._history.events import AdaptationEvent, FrameScalars
from tamiyo.host._history.history import History
from tamiyo.host._history.plot import plot
from tamiyo.host._history.recorder import RunRecorder
from tamiyo.host._history.table import html_table
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._layers.export import export
from tamiyo.host._layers.recovery import RecoveryEvent
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.shadow import Batch
from tamiyo.host._probes.shadow_twin import ShadowTwin
from tamiyo.host._sampling.sampler import Sampler
from tamiyo.host._sampling.step_metrics import Scalar, Validation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Handle", "HandleStats"]

log = logging.getLogger(__name__)

V = TypeVar("V", bound=Validation)


@dataclass(frozen=True, slots=True)
class HandleStats:
    """The state of a run, as the SDK has counted it.

    Attributes:
        run_id: The run.
        step: Steps completed.
        overhead_ratio: Time in the SDK divided by the time of training without it.
        sdk_seconds: Time in the SDK, seconds.
        training_seconds: Time of training without the SDK, seconds.
        twin_seconds: Time of shadow twins, seconds; it counts neither as the SDK's nor as training.
        published_records: Records delivered.
        dropped_records: Records lost.
        decisions: Decisions received, without repetitions.
        repeated: Decisions received again; they are ignored.
        executed: Decisions executed.
        refused: Decisions that the host's limits, or the end of the run, forbade.
        failed: Decisions that raised an error.
        parameters: Trainable numbers of the network, kernels included.
        kernel_parameters: Trainable numbers of the kernels.
        connected: Whether the broker was reached at least once.
        errors: Errors of the SDK that training has survived.
    """

    run_id: str
    step: int
    overhead_ratio: float
    sdk_seconds: float
    training_seconds: float
    twin_seconds: float
    published_records: int
    dropped_records: int
    decisions: int
    repeated: int
    executed: int
    refused: int
    failed: int
    parameters: int
    kernel_parameters: int
    connected: bool
    errors: int


class Handle:
    """An attached run, made by `attach`. Call `step` after every optimiser step; everything else is optional.

    No method raises because of Kafka, a kernel or a probe, and none waits for them except `close`, in bounded time.
    Used as a context manager, it closes the run at the end.
    """

    def __init__(
        self,
        run_id: str,
        model: AttachedModel,
        sampler: Sampler,
        adapter: Adapter,
        transport: Transport,
        meter: OverheadMeter,
        settings: HostSettings,
        twin: ShadowTwin | None = None,
    ) -> None:
        """Join the parts that `attach` has made, and arm the first step."""
        self.run_id = run_id
        self.epoch = 0
        """Passes over the training data begun; set by the loop, if it has epochs."""
        self._model = model
        self._sampler = sampler
        self._adapter = adapter
        self._transport = transport
        self._meter = meter
        self._settings = settings
        self._twin = twin
        self._step = 0
        self._closed = False
        self._in_hook: bool | None = None
        self._errors = 0
        self._recorder = RunRecorder(run_id, model)
        model.recovery.on_event = self._on_recovery
        adapter.on_outcome = self._recorder.outcome
        sampler.on_frame = self._recorder.frame
        sampler.arm(1)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are watched and can grow, as on the topics, in the order in which they run."""
        return tuple(self._model.layers)

    @property
    def left_alone(self) -> Mapping[str, str]:
        """Why other layers of these kinds are not watched, by name in the model."""
        return self._model.left_alone

    @property
    def model(self) -> nn.Module:
        """The attached model."""
        return self._model.model

    @property
    def sampling(self) -> bool:
        """Whether the step under way is measured; compute an accuracy only then, if it costs time."""
        return self._sampler.armed

    @property
    def sample_interval(self) -> float:
        """Steps between two frames, as the overhead budget allows now."""
        return self._sampler.interval

    @property
    def stats(self) -> HandleStats:
        """Counts so far; safe to read from another thread."""
        counts = self._adapter.executor.counts
        return HandleStats(
            run_id=self.run_id,
            step=self._step,
            overhead_ratio=self._meter.ratio,
            sdk_seconds=self._meter.sdk_seconds,
            training_seconds=self._meter.training_seconds,
            twin_seconds=0.0 if self._twin is None else self._twin.seconds,
            published_records=self._transport.published,
            dropped_records=self._transport.dropped,
            decisions=counts.decisions,
            repeated=counts.repeated,
            executed=counts.executed,
            refused=counts.refused,
            failed=counts.failed,
            parameters=self._model.base_parameters + self._model.kernel_parameters,
            kernel_parameters=self._model.kernel_parameters,
            connected=self._transport.connected,
            errors=self._errors + self._sampler.errors,
        )

    @property
    def history(self) -> History:
        """Events and frames' scalars so far, bounded in memory; it stays readable after `close`."""
        return self._recorder.history

    def on_event(self, callback: Callable[[AdaptationEvent], object]) -> Callable[[], None]:
        """Call a function after every adaptation, refusal, kernel error and change of the network.

        It is called in the training thread between two steps, after the network has changed. Its time counts neither
        as training nor as overhead. An error that it raises is logged and goes no further.

        Args:
            callback: Takes an `AdaptationEvent`; its result is ignored.

        Returns:
            A function that ends the calls; calling it again does nothing.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from tamiyo.host import attach
            >>> from tamiyo.host.testing import MemoryTransport
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> optimizer = torch.optim.Adam(model.parameters())
            >>> transport = MemoryTransport()
            >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=transport)
            >>> remove = handle.on_event(print)
            >>> decision = transport.decide("load_kernel", layer="0", blueprint="bottleneck")
            >>> handle.step(loss=0.7)
            step 1: load_kernel bottleneck at layer 0: executed, +280 parameters
            step 1: kernel_added bottleneck at layer 0, +280 parameters
            >>> remove()
            >>> handle.close()
        """
        return self._recorder.on_event.add(callback)

    def on_frame(self, callback: Callable[[FrameScalars], object]) -> Callable[[], None]:
        """Call a function with the scalars of every telemetry frame: losses, accuracies, throughput, parameters.

        It is called like the callbacks of `on_event`.

        Args:
            callback: Takes a `FrameScalars`; its result is ignored.

        Returns:
            A function that ends the calls; calling it again does nothing.
        """
        return self._recorder.on_frame.add(callback)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the training and validation loss over the steps, and mark the adaptations.

        Args:
            ax: Axes of matplotlib to draw into. Default: those of a new figure.

        Returns:
            The axes.

        Raises:
            ConfigurationError: matplotlib is not installed.
        """
        return plot(self.history, self.run_id, ax)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self._transport.connected else "not connected"
        return f"Handle(run_id={self.run_id!r}, step={self._step}, layers={len(self._model.layers)}, {state})"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        stats = self.stats
        kernels = sum(seed.loaded for layer in self._model.grown for seed in layer.seeds)
        return html_table(
            {
                "run": self.run_id,
                "steps": f"{stats.step:,}",
                "layers": f"{len(self._model.layers):,}",
                "kernels": f"{kernels:,}",
                "parameters": f"{stats.parameters:,} ({stats.kernel_parameters:,} in kernels)",
                "decisions": f"{stats.executed} executed, {stats.refused} refused, {stats.failed} failed",
                "overhead": f"{stats.overhead_ratio:.1%}",
                "connected": f"{'yes' if stats.connected else 'no'}: {self._transport.destination}",
            }
        )

    def step(
        self,
        *,
        loss: Scalar,
        accuracy: Scalar | None = None,
        samples: int | None = None,
        batch: Batch | None = None,
    ) -> None:
        """Complete a training step: publish telemetry if it was sampled, and execute decisions that have arrived.

        Call it once after each `optimizer.step()`, not in a hook of it. After `close` it does nothing.

        Args:
            loss: Mean loss of the training batch, nats. A tensor is read at the next sampled step, not now.
            accuracy: Accuracy on the batch, 0..1, if known; read like the loss.
            samples: Samples in the batch. Default: the first dimension of the layers' inputs.
            batch: `(inputs, targets)` that the step trained on, for shadow twins (`twin_budget` of `attach`). A loop
                that accumulates gradients over micro-batches calls `step` with each of them.

        Example:
            >>> import torch
            >>> from torch import Tensor, nn
            >>> from torch.nn import functional as F
            >>> from tamiyo.host import attach
            >>> from tamiyo.host.testing import MemoryTransport
            >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
            >>> optimizer = torch.optim.Adam(model.parameters())
            >>> inputs, labels = torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
            >>> with attach(model, optimizer, example_input=inputs, transport=MemoryTransport()) as handle:
            ...     for _ in range(3):
            ...         logits = model(inputs)
            ...         loss = F.cross_entropy(logits, labels)
            ...         optimizer.zero_grad()
            ...         loss.backward()
            ...         optimizer.step()
            ...         accuracy = (logits.argmax(1) == labels).float().mean() if handle.sampling else None
            ...         handle.step(loss=loss, accuracy=accuracy)
            >>> handle.stats.step
            3
        """
        if self._closed or self._misplaced():
            return
        if self._twin is not None:
            self._twin.follow(self._step + 1, loss, batch)
        self._meter.enter()
        step = self._step = self._step + 1
        updated = True
        try:
            self._sampler.metrics.add(loss, accuracy, samples)
            sampled = self._sampler.armed
            if sampled:
                self._sampler.sample(step, self.epoch)
            updated = self._adapter.advance(step, sampled=sampled)
        except Exception as error:  # training comes first: no error of the SDK may end the loop
            self._survive(error)
        finally:
            try:
                self._sampler.arm(step + 1, updated=updated)
            except Exception as error:
                self._survive(error)
            self._meter.leave()
            if not self._meter.running:
                self._meter.start()
        if self._recorder.waiting:
            self._deliver()

    def validate(self, fn: Callable[[], V]) -> V:
        """Run a validation and publish its result with the next frame.

        Its time counts neither as training nor as overhead.

        Args:
            fn: Returns a loss (nats), a (loss, accuracy) pair, or a mapping with "loss" and perhaps "accuracy".

        Returns:
            What `fn` returns. An error in `fn` is the caller's and propagates.
        """
        with self.outside():
            result = fn()
            self._sampler.metrics.validated(result)
        return result

    def outside(self) -> AbstractContextManager[None]:
        """Return a context whose time counts neither as training nor as overhead, such as saving a checkpoint."""
        return self._meter.outside()

    def export(self) -> nn.Module:
        """Return a copy of the grown model made of plain modules, with equal outputs; see `tamiyo.host.export`."""
        return export(self._model.model)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of model, kernels and optimiser by name: plain values and tensors, for `torch.save`."""
        return {
            "step": self._step,
            "model": self._model.state_dict(),
            "sampling": self._sampler.state_dict(),
            **self._adapter.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume a run of the same network: in another process, or at an earlier step of this one.

        Frames, cooldowns and ramps go on from the saved step. If the network does not fit, nothing has changed.

        Args:
            saved: The result of `state_dict`.

        Raises:
            KernelError: The state does not fit this network or optimiser.
        """
        self._adapter.require_loadable(saved)
        self._model.load_state_dict(saved["model"])
        self._adapter.load_state_dict(saved)
        self._step = int(saved["step"])
        if self._twin is not None:
            self._twin.cancel("the run was resumed from a saved state")
        self._sampler.resume(self._step, saved.get("sampling", {}))
        self._sampler.arm(self._step + 1)
        self._deliver()

    def follow(self, averaged: nn.Module | MutableMapping[str, Tensor]) -> None:
        """Give averaged weights the kernels that the model has, from now on at each `step`.

        A kernel that joins starts in the average at its present values, and one that leaves, leaves it too. So a moving
        average covers all weights, whether it pairs them by position or by name. Call `step` before the average's own
        update.

        Args:
            averaged: A copy of the model made after `attach`, or a module that contains one, such as torch's
                `AveragedModel` or an EMA of timm's; or averages by name, as a dict of tensors.

        Raises:
            ConfigurationError: It is not a copy of the attached model.
        """
        self._adapter.follow(averaged)

    def close(self) -> None:
        """End the run: publish the final frames, an outcome for every open decision, and all queued records.

        Waits up to `HostSettings.drain_s` seconds for decisions still under way, because the last window of a run is
        decided after its end, and up to `flush_timeout_s` seconds for deliveries. The model stays as it has grown.
        Closing again does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._meter.stop()
        if self._twin is not None:
            self._twin.close()
        self._sampler.close()
        try:
            self._sampler.finish(self._step, self.epoch)
            self._adapter.drain(self._step, self._settings.drain_s)
        except Exception as error:  # a completed training must not fail for its telemetry
            self._survive(error)
        self._transport.close(self._settings.flush_timeout_s)
        self._model.recovery.on_event = None
        self._recorder.closed(self._step)
        self._deliver()

    def detach(self) -> None:
        """Close the run, and release the optimiser, and the model unless kernels have grown in it.

        A grown model keeps its kernels; `export` makes a plain one of it.
        """
        self.close()
        self._adapter.release_optimizer()
        self._model.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_recovery(self, event: RecoveryEvent) -> None:
        self._sampler.publish_error(self._step, self.epoch, event)
        self._recorder.recovery(self._step, event)

    def _deliver(self) -> None:
        """Between two steps: call the callbacks with what has happened since the last time."""
        self._recorder.kernels(self._step)
        with self._meter.outside():
            self._recorder.deliver()

    def _misplaced(self) -> bool:
        """Return whether `step` is called by a hook of an optimizer, whose hooks must not change meanwhile."""
        if self._in_hook is None:  # at the first call, because finding out costs as much as a step of the handle
            self._in_hook = within_step_hook()
            if self._in_hook:
                self._errors += 1
                log.error(
                    "handle.step is called in a hook of the optimizer's step: run %s is not watched; call it after "
                    "optimizer.step()", self.run_id,
                )  # fmt: skip
        return self._in_hook

    def _survive(self, error: Exception) -> None:
        self._errors += 1
        log.warning("%s: %s; training continues", type(error).__name__, error, exc_info=self._errors == 1)
