"""Sample training steps: decide when to measure one, measure it, and publish its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from tamiyo.host._adaptation.executor import Executor
from tamiyo.host._client.transport import Transport
from tamiyo.host._common import clock
from tamiyo.host._common.device import memory_bytes
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._layers.recovery import RecoveryEvent
from tamiyo.host._layers.wrapping_cost import wrapping_seconds
from tamiyo.host._probes.counterfactual import HeldOutBatch
from tamiyo.host._probes.failures import Failures
from tamiyo.host._probes.overhead import Governor, OverheadMeter
from tamiyo.host._probes.paired_latency import LatencyProbe, PairedLatency
from tamiyo.host._probes.probes import Probes
from tamiyo.host._probes.shadow_twin import TwinResult
from tamiyo.host._sampling.frames import Frames, Moment
from tamiyo.host._sampling.step_metrics import StepMetrics

_GROWTH, _CONTRIBUTION = "growth", "contribution"


class Sampler:
    """Measures a step now and then, as often as the overhead budget allows, and publishes what it shows.

    Between sampled steps nothing here waits for the device or reads a tensor.
    """

    def __init__(
        self,
        run_id: str,
        model: AttachedModel,
        optimizers: Sequence[torch.optim.Optimizer],
        executor: Executor,
        cache: KernelCache,
        transport: Transport,
        settings: HostSettings,
        *,
        held_out: HeldOutBatch | None,
        meter: OverheadMeter,
        twins: MutableMapping[str, TwinResult],
    ) -> None:
        """Hook into the layers and the optimisers; `arm` decides whether the hooks measure the next step."""
        self._failures = Failures()
        self.metrics = StepMetrics(self._failures)
        """Losses and accuracies since the last frame."""
        self.on_frame: Callable[[int, int, Mapping[str, Any]], None] | None = None
        """Called with step, epoch and the fields of ModelPerformance of every frame."""
        self._run_id = run_id
        self._model = model
        self._optimizers = optimizers
        self._executor = executor
        self._cache = cache
        self._transport = transport
        self._cache_interval = settings.cache_interval
        self._held_out = held_out
        self._latency = LatencyProbe(model.layers, self._failures)
        self._meter = meter
        self._probes = Probes(model.layers, optimizers, meter, self._failures)
        self._frames = Frames(model.layers, executor, transport, twins)
        self._governor = Governor(
            meter,
            settings.overhead_budget,
            {
                Governor.FRAMES: settings.sample_interval,
                _GROWTH: settings.growth_interval,
                _CONTRIBUTION: settings.contribution_interval,
            },
        )
        self._batch = 0
        self._samples = 0.0
        self._armed_step = 1
        self._armed_training_seconds = 0.0
        self._last_frame_step = 0
        self._last_training_seconds = 0.0
        self._last_cache_step = 0
        self._memory: tuple[int, int] = (-1, 0)  # the model's revision, and the bytes at it
        self._charged_executions = 0
        self._charged_busy_seconds = 0.0

    @property
    def armed(self) -> bool:
        """Whether the step under way is measured."""
        return self._probes.armed

    @property
    def interval(self) -> float:
        """Steps between two frames, as the overhead budget allows now."""
        return self._governor.interval(Governor.FRAMES)

    @property
    def errors(self) -> int:
        """Number of measurements that failed."""
        return self._failures.count + (0 if self._held_out is None else self._held_out.failures.count)

    def arm(self, step: int, *, updated: bool = False) -> None:
        """Measure `step`, which begins now, if a frame is due at it; call it once for each step.

        A loop that calls the handle for each micro-batch is measured from one update of the optimiser to the next.

        Args:
            step: The step that begins.
            updated: Whether an optimiser has stepped since the last call.
        """
        if self._probes.advance(updated=updated) and self._governor.due(Governor.FRAMES, step):
            self._probes.arm(growth=self._governor.due(_GROWTH, step))
            self._armed_step = step
            self._armed_training_seconds = self._meter.training_seconds

    def state_dict(self) -> dict[str, int]:
        """Return the step of the last run of each probe."""
        return self._governor.state_dict()

    def resume(self, step: int, saved: Mapping[str, int]) -> None:
        """Go on from `step` with a saved state; it may be before or after the steps seen so far."""
        self._probes.disarm()
        self._governor.resume(step, saved)
        self._frames.resume(step)
        self._last_frame_step = step
        self._last_cache_step = min(self._last_cache_step, step)
        self._last_training_seconds = self._meter.training_seconds
        self.metrics.clear()

    def sample(self, step: int, epoch: int) -> None:
        """Publish what the armed `step`, just completed, has shown; nothing in the midst of micro-batches.

        What cannot be measured is missing from the frame, and costs nothing else.
        """
        if not self._probes.complete:
            return
        started = clock.seconds()
        slowdown = self._slowdown(step)
        measured = self._probes.collect()
        if measured is None:
            return
        if measured.growth_seconds is not None:
            self._governor.spent(_GROWTH, step, measured.growth_seconds)
        if measured.batch:
            self._batch = measured.batch
            self._samples = measured.batch * measured.passes / (step - self._armed_step + 1)
            self._executor.record_batch(measured.batch)
        contributions, latencies, contribution_seconds = self._counterfactual(step)
        moment = Moment(self._run_id, step, epoch)
        with self._failures.isolated("frame"):
            self._frames.sampled(moment, measured, contributions, latencies, self._model_performance(step, epoch))
        if step - self._last_cache_step >= self._cache_interval:
            self._last_cache_step = step
            with self._failures.isolated("kernel cache"):
                self._frames.cache(moment, self._cache)
        wrapping, published = self._charge_untimed()
        if slowdown is not None:
            self._governor.slowed(slowdown - wrapping)
        hooks = self._probes.take_seconds()
        elapsed = clock.seconds() - started
        separate = (measured.growth_seconds or 0.0) + contribution_seconds
        self._governor.spent(Governor.FRAMES, step, elapsed - separate + hooks + wrapping + published)
        self._begin_interval(step)

    def finish(self, step: int, epoch: int) -> None:
        """Publish the run's final frames."""
        self._frames.final(Moment(self._run_id, step, epoch), self._model_performance(step, epoch))

    def publish_error(self, step: int, epoch: int, event: RecoveryEvent) -> None:
        """Publish a kernel's error and its recovery."""
        self._frames.error(Moment(self._run_id, step, epoch), event)

    def close(self) -> None:
        """Remove all hooks from layers and optimiser."""
        self._probes.close()

    def _counterfactual(self, step: int) -> tuple[dict[str, float], dict[str, PairedLatency], float]:
        """Return each grown layer's contribution, nats, all layers' latencies in pairs, and the seconds it took.

        Both are empty if they are not due at `step`, or nothing has grown so far.
        """
        grown = self._model.grown
        if self._held_out is None or not (grown or self._latency.started):
            return {}, {}, 0.0
        if not self._governor.due(_CONTRIBUTION, step):
            return {}, {}, 0.0
        started = clock.seconds()
        contributions: dict[str, float] = {}
        with self._failures.isolated("contribution"):
            contributions = self._held_out.contributions(grown)
        latencies = self._latency.measure(max(1, self._batch))
        seconds = clock.seconds() - started
        self._governor.spent(_CONTRIBUTION, step, seconds)
        return contributions, latencies, seconds

    def _slowdown(self, step: int) -> float | None:
        """Return how much longer the sampled step took than the mean of those since the last frame, seconds.

        What was timed is left out. None if there is nothing to compare with; the run's first step has no time.
        """
        trained, begun = self._meter.training_seconds, self._armed_training_seconds
        steps, before = step - self._armed_step + 1, self._armed_step - 1 - self._last_frame_step
        if before < 1 or not self._last_frame_step:
            return None
        return trained - begun - steps * (begun - self._last_training_seconds) / before

    def _charge_untimed(self) -> tuple[float, float]:
        """Charge what no hook has timed; return hooked calls' and the transport's part since the last call, seconds."""
        executions = sum(layer.performance.total_executions for layer in self._model.layers.values())
        busy_seconds = self._transport.busy_seconds
        wrapping = (executions - self._charged_executions) * wrapping_seconds()
        published = busy_seconds - self._charged_busy_seconds
        self._charged_executions, self._charged_busy_seconds = executions, busy_seconds
        self._meter.charge(wrapping + published)
        return wrapping, published

    def _begin_interval(self, step: int) -> None:
        trained = self._meter.training_seconds
        if step > self._last_frame_step:
            self._governor.adjust((trained - self._last_training_seconds) / (step - self._last_frame_step))
        self._last_training_seconds, self._last_frame_step = trained, step

    def _model_performance(self, step: int, epoch: int) -> dict[str, Any]:
        """Return ModelPerformance's own fields, and begin new means."""
        if self._memory[0] != self._model.revision:
            with self._failures.isolated("memory"):
                self._memory = (self._model.revision, memory_bytes(self._model.model, self._optimizers))
        means = self.metrics.take(
            samples=self._samples,
            steps=step - self._last_frame_step,
            seconds=self._meter.training_seconds - self._last_training_seconds,
        )
        fields = {
            **means,
            "memory_bytes": self._memory[1],
            "parameters": self._model.base_parameters + self._model.kernel_parameters,
            "base_parameters": self._model.base_parameters,
            "overhead_ratio": self._meter.ratio,
            "dropped_records": self._transport.dropped,
            "steps_since_adaptation": self._executor.steps_since(step),
        }
        if self.on_frame is not None:
            self.on_frame(step, epoch, fields)
        return fields
