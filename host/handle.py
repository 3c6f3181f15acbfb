"""The handle of an attached run: what a training loop calls after each step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import nn

from tamiyo.host.adaptation.executor import Executor
from tamiyo.host.adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host.client.publisher import Publisher
from tamiyo.host.client.receiver import Receiver
from tamiyo.host.common.device import memory_bytes
from tamiyo.host.common.settings import HostSettings
from tamiyo.host.frames import Frames, Moment
from tamiyo.host.kernels.cache import KernelCache
from tamiyo.host.layers.export import export
from tamiyo.host.layers.kasmina_layer import KasminaLayer, wrapping_seconds
from tamiyo.host.layers.recovery import ErrorRecovery, RecoveryEvent
from tamiyo.host.probes.counterfactual import HeldOutBatch
from tamiyo.host.probes.overhead import Governor, OverheadMeter
from tamiyo.host.probes.probes import Probes
from tamiyo.host.step_metrics import Scalar, StepMetrics, Validation

log = logging.getLogger(__name__)

V = TypeVar("V", bound=Validation)

GROWTH, CONTRIBUTION = "growth", "contribution"


@dataclass(frozen=True, slots=True)
class HandleStats:
    """Where a run stands, as the SDK has counted it. `errors` are the SDK's own, which it has survived."""

    run_id: str
    step: int
    overhead_ratio: float
    sdk_seconds: float
    training_seconds: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What `attach` puts together."""

    run_id: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    layers: Mapping[str, KasminaLayer]
    base_parameters: int
    settings: HostSettings
    growing: GrowingOptimizer
    recovery: ErrorRecovery
    cache: KernelCache
    probes: Probes
    meter: OverheadMeter
    held_out: HeldOutBatch | None
    publisher: Publisher
    receiver: Receiver
    executor: Executor
    unwrap: Callable[[], None]


class Handle:
    """Made by `attach`. Call `step` after every optimiser step; the rest is optional.

    No method raises because of Kafka, a kernel or a probe, and none waits for them but `close`, in bounded time.
    """

    def __init__(self, parts: Parts) -> None:
        self.run_id = parts.run_id
        self.epoch = 0
        """Passes over the training data begun; set by the loop, where it has epochs."""
        self._parts = parts
        settings = parts.settings
        self._governor = Governor(
            parts.meter,
            settings.overhead_budget,
            {
                Governor.FRAMES: settings.sample_interval,
                GROWTH: settings.growth_interval,
                CONTRIBUTION: settings.contribution_interval,
            },
        )
        self._frames = Frames(parts.layers, parts.executor, parts.publisher)
        parts.recovery.on_event = self._on_recovery
        self._step = 0
        self._closed = False
        self._errors = 0
        self._grown: list[KasminaLayer] = []
        self._span = StepMetrics()
        self._batch = 0
        self._last_frame_step = 0
        self._last_training_seconds = 0.0
        self._last_cache_step = 0
        self._memory = 0
        self._kernel_parameters = 0
        self._executions = 0
        self._published_seconds = 0.0
        self._changed()
        self._arm()

    @property
    def sampling(self) -> bool:
        """Whether the step under way is measured; a loop need compute an accuracy only then."""
        return self._parts.probes.armed

    @property
    def sample_interval(self) -> float:
        """Steps between two frames, as the overhead budget allows."""
        return self._governor.interval(Governor.FRAMES)

    @property
    def stats(self) -> HandleStats:
        """Counts so far."""
        parts, counts = self._parts, self._parts.executor.counts
        kernels = sum(layer.kernel_parameters for layer in parts.layers.values())
        return HandleStats(
            run_id=self.run_id,
            step=self._step,
            overhead_ratio=parts.meter.ratio,
            sdk_seconds=parts.meter.sdk_seconds,
            training_seconds=parts.meter.training_seconds,
            published_records=parts.publisher.published,
            dropped_records=parts.publisher.dropped,
            decisions=counts.decisions,
            repeated=counts.repeated,
            executed=counts.executed,
            refused=counts.refused,
            failed=counts.failed,
            parameters=parts.base_parameters + kernels,
            kernel_parameters=kernels,
            connected=parts.receiver.connected,
            errors=self._errors + parts.probes.errors,
        )

    def step(self, *, loss: Scalar, accuracy: Scalar | None = None, samples: int | None = None) -> None:
        """Call once after each optimiser step, with the training batch's mean loss in nats.

        accuracy: of the batch, 0..1, wherever it was computed. samples: in the batch, where it is not the first
        dimension of what the layers take. After `close` this does nothing.
        """
        if self._closed:
            return
        meter = self._parts.meter
        meter.enter()
        try:
            self._step += 1
            self._span.add(loss, accuracy, samples)
            self._between_steps()
        except Exception as error:  # training comes first: whatever is wrong with us, the loop goes on
            self._survive(error)
        finally:
            meter.leave()
            meter.start()

    def validate(self, fn: Callable[[], V]) -> V:
        """Run the user's validation and return what it returns; its time counts neither as training nor as ours.

        A loss (nats), a (loss, accuracy) pair, or a mapping with "loss" and perhaps "accuracy": told in the next frame.
        """
        with self.outside():
            result = fn()
            self._span.validated(result)
        return result

    def outside(self) -> AbstractContextManager[None]:
        """Within: what is neither training nor the SDK (saving a checkpoint, say), for throughput and overhead."""
        return self._parts.meter.outside()

    def export(self) -> nn.Module:
        """A copy of the grown model as plain modules, with equal outputs."""
        return export(self._parts.model)

    def state_dict(self) -> dict[str, Any]:
        """The model, its kernels and the optimiser, by name; plain values and tensors, for `torch.save`."""
        return {
            "step": self._step,
            "model": self._parts.model.state_dict(),
            "optimizer": self._parts.growing.state_dict(self._parts.model),
            "scales": self._parts.executor.scales(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on where a run of the same network stood. Raises KernelError where it does not fit."""
        self._parts.model.load_state_dict(saved["model"])
        self._parts.growing.load_state_dict(self._parts.model, saved["optimizer"])
        self._parts.executor.resume(saved["scales"])
        self._step = int(saved["step"])
        self._changed()
        self._arm()

    def close(self) -> None:
        """End the run: final frames, an answer to every decision still open, delivery; all in bounded time.

        Waits up to `drain_s` for decisions still under way (a run's last window is decided once it has ended) and up
        to `flush_timeout_s` for deliveries. The model stays as it has grown. A repeat changes nothing.
        """
        if self._closed:
            return
        self._closed = True
        parts = self._parts
        parts.meter.stop()
        parts.probes.close()
        try:
            self._frames.final(self._moment(), self._model_performance())
            self._drain()
        except Exception as error:  # a run that has ended well must not fail for its telemetry
            self._survive(error)
        parts.receiver.close()
        parts.publisher.close(parts.settings.flush_timeout_s)
        parts.recovery.on_event = None

    def detach(self) -> None:
        """Close; then put plain layers back wherever no kernel was grown, and let go of the optimiser.

        Layers that have grown stay as they are: `export` makes plain ones of them.
        """
        self.close()
        self._parts.growing.close()
        self._parts.unwrap()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _between_steps(self) -> None:
        parts, step = self._parts, self._step
        if parts.probes.armed:
            self._sample()
        for layer in tuple(self._grown):
            for dropped in layer.advance(step):
                parts.growing.drop(dropped.kernel.parameters())
                self._changed()
        arrivals = parts.receiver.receive()
        for arrival in arrivals:
            parts.executor.take(arrival, step)
        if (arrivals or parts.executor.open) and parts.executor.run(step):
            self._changed()
        self._arm()

    def _arm(self) -> None:
        following = self._step + 1
        if self._governor.due(Governor.FRAMES, following):
            self._parts.probes.arm(growth=self._governor.due(GROWTH, following))

    def _changed(self) -> None:
        self._grown = [layer for layer in self._parts.layers.values() if len(layer.kernels)]
        self._kernel_parameters = sum(layer.kernel_parameters for layer in self._grown)
        self._memory = 0

    def _sample(self) -> None:
        """Publish what the step that has just been done showed."""
        parts, step, governor = self._parts, self._step, self._governor
        started = time.perf_counter()
        measured = parts.probes.collect()
        if measured is None:
            return
        rare = measured.growth_seconds
        if measured.growth:
            governor.spent(GROWTH, step, measured.growth_seconds)
        contributions: dict[str, float] = {}
        if parts.held_out is not None and self._grown and governor.due(CONTRIBUTION, step):
            began = time.perf_counter()
            contributions = parts.held_out.contributions(self._grown)
            took = time.perf_counter() - began
            governor.spent(CONTRIBUTION, step, took)
            rare += took
        if measured.batch:
            self._batch = measured.batch
            parts.executor.seen_batch(measured.batch)
        moment = self._moment()
        self._frames.sampled(moment, measured, contributions, self._model_performance())
        if step - self._last_cache_step >= parts.settings.cache_interval:
            self._last_cache_step = step
            self._frames.cache(moment, parts.cache)
        published = self._charge()
        hooks = parts.probes.take_seconds()
        governor.spent(Governor.FRAMES, step, time.perf_counter() - started - rare + hooks + published)
        self._reset(step)

    def _charge(self) -> float:
        """Charge what no hook has timed; returns the publisher's part of it, seconds since this was last asked."""
        parts = self._parts
        executions = sum(layer.performance.total_executions for layer in parts.layers.values())
        published = parts.publisher.busy_seconds
        wrapping = (executions - self._executions) * wrapping_seconds()
        self._executions, since = executions, published - self._published_seconds
        self._published_seconds = published
        parts.meter.charge(wrapping + since)
        return since

    def _reset(self, step: int) -> None:
        trained = self._parts.meter.training_seconds
        if step > self._last_frame_step:
            self._governor.adjust((trained - self._last_training_seconds) / (step - self._last_frame_step))
        self._last_training_seconds, self._last_frame_step = trained, step

    def _moment(self) -> Moment:
        return Moment(self.run_id, self._step, self.epoch)

    def _model_performance(self) -> dict[str, Any]:
        """ModelPerformance's own fields; begins a new span of means."""
        parts, step = self._parts, self._step
        if not self._memory:
            self._memory = memory_bytes(parts.model, parts.optimizer)
        told = self._span.take(
            batch=self._batch,
            steps=step - self._last_frame_step,
            seconds=parts.meter.training_seconds - self._last_training_seconds,
        )
        return {
            **told,
            "memory_bytes": self._memory,
            "parameters": parts.base_parameters + self._kernel_parameters,
            "base_parameters": parts.base_parameters,
            "overhead_ratio": parts.meter.ratio,
            "dropped_records": parts.publisher.dropped,
            "steps_since_adaptation": parts.executor.steps_since(step),
        }

    def _drain(self) -> None:
        """Answer every decision about this run: those open now, and those that its last telemetry leads to."""
        parts, step = self._parts, self._step
        for arrival in parts.receiver.receive():
            parts.executor.take(arrival, step)
        parts.executor.end(step)
        deadline = time.monotonic() + parts.settings.drain_s
        while parts.receiver.connected and time.monotonic() < deadline:
            # Decisions of a run come in order: after the one about its last step there is none.
            if (parts.executor.latest_decision_step or -1) >= step:
                return
            time.sleep(0.01)
            for arrival in parts.receiver.receive():
                parts.executor.take(arrival, step)

    def _on_recovery(self, event: RecoveryEvent) -> None:
        self._frames.error(Moment(self.run_id, self._step, self.epoch), event)

    def _survive(self, error: Exception) -> None:
        self._errors += 1
        log.warning("%s: %s; training goes on", type(error).__name__, error, exc_info=self._errors == 1)
