"""Measurements of the layers at a sampled step: in the forward pass, of the gradients, around the update."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tamiyo.host.common import clock
from tamiyo.host.common.device import read_all
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.probes.growth_score import GrowthProbe
from tamiyo.host.probes.overhead import OverheadMeter

log = logging.getLogger(__name__)

# Bounds, so that a layer's statistics cost about the same at any layer.
MAX_UNITS = 64
MAX_POSITIONS = 1024  # the variance of so many values is within 5 % of the true one
MAX_SAMPLES = 64
MAX_PARAMETERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Activation:
    """One layer in the forward pass: latency, and the output's variance, share of dead units, mean |correlation|."""

    latency_ms: float
    variance: float
    dead_ratio: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Learning:
    """One layer's own parameters: norm of the gradient, and norm of the update divided by that of the values."""

    gradient_norm: float
    update_ratio: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements of a step by layer_id; a layer that did not run, or whose values are not finite, is absent."""

    batch: int
    activations: Mapping[str, Activation]
    learning: Mapping[str, Learning]
    growth: Mapping[str, float]
    growth_seconds: float
    """Time that the growth scores took, seconds."""


def unit_values(output: Tensor, channels_last: bool) -> Tensor | npt.NDArray[np.float32]:
    """Return a copy of a layer's output [batch, ...] as [units, samples, positions], thinned evenly if it is large.

    A numpy array if the output is in main memory, because small operations are several times cheaper on it.
    """
    values = output.detach()
    local = values.device.type == "cpu" and values.dtype is torch.float32
    found: Any = values.numpy() if local else values
    if channels_last:
        found = found.reshape(-1, found.shape[-1], 1)
    elif found.ndim != 3:
        found = found.reshape(*found.shape[:2], -1)
    batch, units, positions = found.shape
    # Thin first, so that a large output is never copied whole.
    samples = MAX_POSITIONS if positions == 1 else MAX_SAMPLES
    every = math.ceil(batch / samples)
    along = math.ceil(positions * math.ceil(batch / every) / MAX_POSITIONS)
    part = found[::every, :: math.ceil(units / MAX_UNITS), ::along].swapaxes(0, 1)
    # A copy, because the next module may change the output in place.
    copied: Tensor | npt.NDArray[np.float32] = part.copy() if local else part.clone()
    return copied


def activation_stats(units: npt.NDArray[np.float32]) -> tuple[float, float, float]:
    """Return variance, dead ratio and mean absolute correlation of a layer's output.

    Args:
        units: Values, [units, positions].

    Returns:
        The population variance of all values; the share of units that are positive nowhere, 0..1; the mean
        |correlation| over all pairs of units that vary, 0..1, 0 if fewer than two do.
    """
    # Few operations: this runs for every layer, and the overhead of a call exceeds its arithmetic.
    count, positions = units.shape
    means = np.add.reduce(units, axis=1) / positions
    centred = units - means[:, None]
    gram = centred @ centred.T
    squares = gram.diagonal()
    spread = means - np.add.reduce(means) / count
    variance = (float(np.add.reduce(squares)) / positions + float(spread @ spread)) / count
    dead = float(np.add.reduce(np.maximum.reduce(units, axis=1) <= 0)) / count
    # Rounding leaves a constant unit with a small variance.
    varies = squares > positions * 1e-12 * (1e-12 + means * means)
    vary = int(np.add.reduce(varies))
    if vary < 2:
        return variance, dead, 0.0
    scale = varies / np.sqrt(np.where(varies, squares, 1.0))
    total = float(np.add.reduce(np.abs(gram * scale[:, None] * scale), axis=None)) - vary
    return variance, dead, min(max(total / (vary * (vary - 1)), 0.0), 1.0)


@dataclass(slots=True)
class _Output:
    """A layer's output in the sampled step, thinned."""

    latency_ms: float
    units: Tensor | npt.NDArray[np.float32]


@dataclass(slots=True)
class _Sample:
    """What the hooks have recorded since `arm`."""

    growth: bool
    batch: int = 0
    outputs: dict[str, _Output] = field(default_factory=dict)
    flows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    owners: list[str] = field(default_factory=list)
    """The layer of each entry in the lists below."""
    gradients: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)


class Probes:
    """Hooks on layers and optimiser that measure the step under way if armed, and do nothing otherwise."""

    def __init__(
        self, layers: Mapping[str, KasminaLayer], optimizer: torch.optim.Optimizer, meter: OverheadMeter
    ) -> None:
        """Register the hooks; their time counts as the SDK's."""
        self._layers = layers
        self._measuring = _Measuring(meter)
        self._sample: _Sample | None = None
        self._growth = {layer_id: GrowthProbe(layer.spec) for layer_id, layer in layers.items()}
        # Registered after GrowingOptimizer's hooks, so that the update is measured after its scaling.
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def errors(self) -> int:
        """Number of errors of the SDK while measuring."""
        return self._measuring.errors

    @property
    def armed(self) -> bool:
        """Whether the step under way is measured."""
        return self._sample is not None

    def take_seconds(self) -> float:
        """Return the time spent in the hooks since the last call, seconds."""
        seconds, self._measuring.seconds = self._measuring.seconds, 0.0
        return seconds

    def arm(self, *, growth: bool) -> None:
        """Measure the step that begins now, with growth scores, the most expensive part, if `growth`."""
        self._sample = _Sample(growth)
        for layer in self._layers.values():
            layer.observe(self._observe)

    def disarm(self) -> None:
        """Stop measuring and discard the measurements."""
        self._sample = None
        for layer in self._layers.values():
            layer.observe(None)

    def close(self) -> None:
        """Remove all hooks."""
        self.disarm()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def collect(self) -> Measurements | None:
        """Return the measurements since `arm`, and disarm; None if not armed. Few transfers from the device."""
        sample = self._sample
        self.disarm()
        if sample is None:
            return None
        activations = {layer_id: self._activation(output) for layer_id, output in sample.outputs.items()}
        learning = _learning(sample)
        started = clock.seconds()
        growth = self._scores(sample)
        return Measurements(
            batch=sample.batch,
            activations={k: v for k, v in activations.items() if v is not None},
            learning={k: v for k, v in learning.items() if math.isfinite(v.gradient_norm + v.update_ratio)},
            growth=growth,
            growth_seconds=clock.seconds() - started,
        )

    def _activation(self, output: _Output) -> Activation | None:
        units = output.units if isinstance(output.units, np.ndarray) else output.units.float().cpu().numpy()
        stats = activation_stats(units.reshape(len(units), -1))
        return Activation(output.latency_ms, *stats) if all(map(math.isfinite, stats)) else None

    def _scores(self, sample: _Sample) -> dict[str, float]:
        scores = read_all([self._growth[layer_id].score(*flow) for layer_id, flow in sample.flows.items()])
        return {k: score for k, score in zip(sample.flows, scores, strict=True) if math.isfinite(score)}

    def _observe(self, layer: KasminaLayer, layer_input: Tensor, output: Tensor, latency_ms: float) -> None:
        sample = self._sample
        # A forward pass in eval mode or without gradients is a validation, not the training step.
        if sample is None or not (layer.base.training and torch.is_grad_enabled()):
            return
        with self._measuring:
            units = unit_values(layer.spec.batched(output), channels_last=layer.spec.channels_last)
            sample.outputs[layer.layer_id] = _Output(latency_ms, units)
            sample.batch = max(sample.batch, layer.spec.batch(layer_input))
            if sample.growth and output.requires_grad:
                keep = partial(_keep, sample.flows, layer.layer_id, layer_input.detach())
                output.register_hook(keep)  # type: ignore[no-untyped-call]

    def _before_step(self, *_: Any) -> None:
        sample = self._sample
        if sample is None:
            return
        with self._measuring, torch.no_grad():
            for layer_id, layer in self._layers.items():
                for parameter in layer.base.parameters():
                    if parameter.grad is not None:
                        sample.owners.append(layer_id)
                        sample.gradients.append(_dense(parameter.grad))
                        sample.parameters.append(_part(parameter))
            if sample.owners:
                sample.before = list(torch._foreach_mul(sample.parameters, 1.0))
                sample.gradients = list(torch._foreach_norm(sample.gradients))

    def _after_step(self, *_: Any) -> None:
        sample = self._sample
        if sample is None or not sample.before:
            return
        with self._measuring, torch.no_grad():
            sample.changes = list(torch._foreach_norm(torch._foreach_sub(sample.parameters, sample.before)))
            sample.before = list(torch._foreach_norm(sample.before))


class _Measuring:
    """A context whose time counts as the SDK's, and from which no error reaches the training loop."""

    def __init__(self, meter: OverheadMeter) -> None:
        self.errors = 0
        self.seconds = 0.0
        self._meter = meter
        self._started = 0.0

    def __enter__(self) -> None:
        self._meter.enter()
        self._started = clock.seconds()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.seconds += clock.seconds() - self._started
        self._meter.leave()
        if not isinstance(error, Exception):
            return False
        # Training comes first: a layer that cannot be measured has no telemetry.
        self.errors += 1
        log.warning("measuring a step failed: %s: %s", type(error).__name__, error, exc_info=self.errors == 1)
        return True


def _keep(flows: dict[str, tuple[Tensor, Tensor]], layer_id: str, layer_input: Tensor, gradient: Tensor) -> None:
    """Keep the first (input, gradient) of a layer; a hook for the gradient at its output."""
    flows.setdefault(layer_id, (layer_input, gradient.detach()))


def _part(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's values, thinned evenly if there are more than MAX_PARAMETERS."""
    flat = parameter.detach().reshape(-1)
    return flat[:: math.ceil(len(flat) / MAX_PARAMETERS)] if len(flat) > MAX_PARAMETERS else flat


def _dense(gradient: Tensor) -> Tensor:
    if not gradient.is_sparse:
        return gradient
    values: Tensor = gradient.coalesce().values()  # type: ignore[no-untyped-call]
    return values


def _learning(sample: _Sample) -> dict[str, Learning]:
    """Return the norms over each layer's parameters, from those of every parameter; one transfer from the device."""
    if not sample.changes:
        return {}
    norms = read_all([*sample.gradients, *sample.changes, *sample.before])
    size = len(sample.owners)
    sums: dict[str, list[float]] = {}
    for index, layer_id in enumerate(sample.owners):
        total = sums.setdefault(layer_id, [0.0, 0.0, 0.0])
        for kind in range(3):
            total[kind] += norms[kind * size + index] ** 2
    return {
        layer_id: Learning(math.sqrt(gradient), math.sqrt(change / size_squared) if size_squared else 0.0)
        for layer_id, (gradient, change, size_squared) in sums.items()
    }
