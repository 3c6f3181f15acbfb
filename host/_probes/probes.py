"""Measurements of the layers at a sampled step: in the forward pass, of the gradients, around the update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tamiyo.host._common import clock
from tamiyo.host._common.compiled import run_compiled, run_eagerly
from tamiyo.host._common.device import read_all
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes.activations import Activation, Output, activation, is_transformed, unit_values
from tamiyo.host._probes.failures import Failures
from tamiyo.host._probes.gradients import GradientRecorder, Learning
from tamiyo.host._probes.growth_score import MAX_ROWS, GrowthProbe
from tamiyo.host._probes.overhead import OverheadMeter

_FEWEST_SAMPLES = 8  # of a growth score, however many positions each has


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements of a step by layer_id; a layer that did not run, or whose values are not finite, is absent."""

    batch: int
    """Samples of one forward pass."""
    passes: int
    """Forward passes of the step: more than one if the loop accumulates gradients."""
    activations: Mapping[str, Activation]
    learning: Mapping[str, Learning]
    growth: Mapping[str, float]
    growth_seconds: float | None
    """Time that the growth scores took, seconds; None if they were not due, or there was nothing to score."""


@dataclass(slots=True)
class _Flow:
    """What a growth score is computed from: inputs of a layer, and the gradients at its output, [samples, ...]."""

    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    kept: int = 0
    """Values in `gradients`."""
    seen: int = 0
    """Values of all gradients of the step, more than `kept` if some were left out."""

    def add(self, layer_input: Tensor, gradient: Tensor, outputs: int) -> None:
        """Add a call's input [samples, ...] and gradient [samples, ...], `outputs` features wide.

        As many samples are kept as a score uses, because those of many micro-batches could fill the memory.
        """
        self.seen += gradient.numel()
        rows = max(1, gradient[0].numel() // outputs)
        wanted = max(_FEWEST_SAMPLES, math.ceil(MAX_ROWS / rows)) - sum(map(len, self.inputs))
        if wanted <= 0 or (self.inputs and self.inputs[0].shape[1:] != layer_input.shape[1:]):
            return
        if len(layer_input) > wanted:  # a copy, so that the rest is freed
            layer_input, gradient = layer_input[:wanted].clone(), gradient[:wanted].clone()
        self.inputs.append(layer_input)
        self.gradients.append(gradient)
        self.kept += gradient.numel()


@dataclass(slots=True)
class _Sample:
    """What the hooks have recorded since `arm`."""

    growth: bool
    gradients: GradientRecorder
    batch: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    flows: dict[str, _Flow] = field(default_factory=dict)


class Probes:
    """Hooks on layers and optimisers that measure the step under way if armed, and do nothing otherwise.

    A step reaches from one update of the optimisers to the next, however many forward passes it has:

    - Activations are those of the first pass in which a layer runs, and of its first call there, so that layers that
      are called several times, and passes that activation checkpointing repeats, count once.
    - Gradient and update are those of the first update of a layer's parameters; see `GradientRecorder`.
    - A growth score is over all calls and all micro-batches whose gradients the update used. Calls on inputs of another
      shape than the first one's are represented by those of the first one's.
    """

    def __init__(
        self,
        layers: Mapping[str, KasminaLayer],
        optimizers: Sequence[torch.optim.Optimizer],
        meter: OverheadMeter,
        failures: Failures | None = None,
    ) -> None:
        """Measure nothing yet. The hooks' time counts as the SDK's, and what cannot be measured as a failure."""
        self.failures = failures or Failures()
        run_compiled()
        self._layers = layers
        self.meter = meter
        self.hook_seconds = 0.0
        """Time in the hooks since the last `take_seconds`."""
        self._sample: _Sample | None = None
        self._growth: dict[str, GrowthProbe] = {}
        self._updated = False
        self._since_update = -1  # the first call of `advance` begins the first step
        self._interval = 1
        self._optimizers = optimizers
        self._hooks: list[RemovableHandle] = []

    @property
    def armed(self) -> bool:
        """Whether the step under way is measured."""
        return self._sample is not None

    @property
    def complete(self) -> bool:
        """Whether an update has ended the step, or one is overdue: a gradient scaler leaves some out."""
        return self._updated or self._since_update + 1 >= self._interval

    def advance(self, *, updated: bool) -> bool:
        """Take note that the loop has completed a step, or a micro-batch if it calls the handle for each of them.

        Args:
            updated: Whether an optimiser has stepped in it.

        Returns:
            Whether a step that is not measured begins now: not in the midst of a loop's micro-batches.
        """
        self._since_update += 1
        if updated:
            self._interval, self._since_update = self._since_update, 0
        return self._sample is None and (self._since_update == 0 or self._since_update >= self._interval)

    def take_seconds(self) -> float:
        """Return the time spent in the hooks since the last call, seconds."""
        seconds, self.hook_seconds = self.hook_seconds, 0.0
        return seconds

    def arm(self, *, growth: bool) -> None:
        """Measure the step that begins now, with growth scores, the most expensive part, if `growth`."""
        self.disarm()
        self._sample = _Sample(growth, GradientRecorder(self._layers, self._measuring))
        self._updated = False
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))
        for layer in self._layers.values():
            layer.observe(self._observe)
        run_eagerly(self)

    def disarm(self) -> None:
        """Stop measuring and discard the measurements."""
        sample, self._sample = self._sample, None
        if sample is None:
            return
        sample.gradients.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        run_compiled(self)
        for layer in self._layers.values():
            layer.observe(None)

    def close(self) -> None:
        """Remove all hooks; nothing of the optimisers is measured from now on."""
        self.disarm()
        self._optimizers = ()

    def collect(self) -> Measurements | None:
        """Return the measurements since `arm`, and disarm; None if not armed. Few transfers from the device."""
        sample = self._sample
        self.disarm()
        if sample is None:
            return None
        activations: dict[str, Activation] = {}
        for layer_id, output in sample.outputs.items():
            with self.failures.isolated("activations", layer_id):
                found = activation(output)
                if found is not None:
                    activations[layer_id] = found
        learning: Mapping[str, Learning] = {}
        with self.failures.isolated("gradients"):
            learning = sample.gradients.learning()
        started = clock.seconds()
        flows = {layer_id: flow for layer_id, flow in sample.flows.items() if layer_id in learning}
        growth = self._scores(flows, learning)
        return Measurements(
            batch=sample.batch,
            passes=min(sample.calls.values(), default=1),
            activations=activations,
            learning=learning,
            growth=growth,
            growth_seconds=clock.seconds() - started if flows else None,
        )

    def _scores(self, flows: Mapping[str, _Flow], learning: Mapping[str, Learning]) -> dict[str, float]:
        scores: dict[str, Tensor] = {}
        for layer_id, flow in flows.items():
            with self.failures.isolated("growth score", layer_id):
                if layer_id not in self._growth:
                    self._growth[layer_id] = GrowthProbe(self._layers[layer_id].spec)
                scores[layer_id] = self._growth[layer_id].score(_joined(flow.inputs), _joined(flow.gradients))
        found: dict[str, float] = {}
        with self.failures.isolated("growth score"):
            for layer_id, score in zip(scores, read_all(list(scores.values())), strict=True):
                # A sum over rows, quadratic in the gradient, which a gradient scaler has scaled.
                flow = flows[layer_id]
                score *= flow.seen / flow.kept / learning[layer_id].loss_scale ** 2
                if math.isfinite(score):
                    found[layer_id] = score
        return found

    def _observe(self, layer: KasminaLayer, layer_input: Tensor, output: Tensor, latency_ms: float) -> None:
        sample = self._sample
        # A forward pass in eval mode or without gradients is a validation, unless its gradients arrive.
        if sample is None or not torch.is_grad_enabled() or output.numel() == 0:
            return
        if not (layer.base.training or output.requires_grad) or is_transformed(output):
            return
        spec, layer_id = layer.spec, layer.layer_id
        seen: Output | None = None
        if layer_id not in sample.outputs:
            with self._measuring("activations", layer_id):
                seen = Output(latency_ms, unit_values(spec.batched(output), channels_last=spec.channels_last))
        batch = spec.batch(layer_input)
        if layer.base.training:
            _count(sample, layer_id, batch, seen)
        if output.requires_grad and (sample.growth or not layer.base.training):
            pending = None if layer.base.training else partial(_count, sample, layer_id, batch, seen)
            with self._measuring("growth score", layer_id):
                given = spec.batched(layer_input.detach())
                keep = partial(self._keep, sample, layer, given, given.ndim > layer_input.ndim, pending)
                output.register_hook(keep)  # type: ignore[no-untyped-call]

    def _keep(
        self,
        sample: _Sample,
        layer: KasminaLayer,
        layer_input: Tensor,
        unbatched: bool,
        pending: partial[None] | None,
        gradient: Tensor,
    ) -> None:
        """Keep the input of a layer and the gradient at its output; a hook for the latter."""
        if sample is not self._sample:
            return
        with self._measuring("growth score", layer.layer_id):
            if pending is not None:
                pending()
            state = sample.gradients.of_layer(layer.layer_id)
            if not sample.growth or state is None or state.updated:
                return
            if state.begin():
                sample.flows.pop(layer.layer_id, None)
            flow = sample.flows.setdefault(layer.layer_id, _Flow())
            gradient = gradient.detach()
            flow.add(layer_input, gradient.unsqueeze(0) if unbatched else gradient, layer.spec.out_features)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._sample is None:
            return
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        with self._measuring("gradients"):
            self._sample.gradients.before_step(optimizer, evaluates=closure is not None)

    def _after_step(self, *_: Any) -> None:
        self._updated = True
        if self._sample is None:
            return
        with self._measuring("gradients"):
            self._sample.gradients.after_step()

    def _measuring(self, measurement: str, layer_id: str | None = None) -> _Measuring:
        return _Measuring(self, measurement, layer_id)


class _Measuring:
    """A context whose time counts as the SDK's, and from which no error reaches the training loop."""

    __slots__ = ("_layer_id", "_measurement", "_probes", "_started")

    def __init__(self, probes: Probes, measurement: str, layer_id: str | None) -> None:
        self._probes = probes
        self._measurement = measurement
        self._layer_id = layer_id
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = self._probes.meter.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self._probes.failures.record(self._measurement, error, self._layer_id)
        self._probes.hook_seconds += self._probes.meter.leave() - self._started
        return error is None or isinstance(error, Exception)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _count(sample: _Sample, layer_id: str, batch: int, output: Output | None) -> None:
    """Count a call of a layer in the step; its output is measured at the first one."""
    sample.batch = max(sample.batch, batch)
    sample.calls[layer_id] = sample.calls.get(layer_id, 0) + 1
    if output is not None:
        sample.outputs.setdefault(layer_id, output)
