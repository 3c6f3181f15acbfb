"""What a layer's kernels cost in time: its forward pass with and without them, in pairs.

A busy neighbour cannot change the result: on a CPU the clock is the thread's own processor time, on a GPU the stream's
events, and both passes of a pair run within a fraction of a millisecond.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tamiyo.host._common import clock
from tamiyo.host._common.undisturbed import undisturbed
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes.counterfactual import active_seeds, counters_kept
from tamiyo.host._probes.failures import Failures

PAIRS = 3
"""The fewest with a median: a probe costs seven passes of each layer with kernels, and a reward uses many probes."""


@dataclass(frozen=True, slots=True)
class PairedLatency:
    """A layer's forward pass, ms of processor time on a CPU: without its active kernels, and what they add."""

    base_ms: float
    kernel_ms: float


class LatencyProbe:
    """Measures the forward passes of all layers once, and those with kernels again at every call.

    With several intra-op threads only the share of the calling thread counts, in both passes of a pair alike. Devices
    other than CPU and CUDA are not measured.
    """

    def __init__(self, layers: Mapping[str, KasminaLayer], failures: Failures) -> None:
        """Measure nothing yet; `failures` counts the layers that cannot be measured."""
        self._layers = layers
        self._failures = failures
        self._plain: dict[str, tuple[int, PairedLatency]] = {}
        """The latest measurement of each layer without active kernels, and its batch."""

    @property
    def started(self) -> bool:
        """Whether something was measured; from then on the latencies without a kernel are of interest too."""
        return bool(self._plain)

    def measure(self, batch: int) -> dict[str, PairedLatency]:
        """Return the latency of every layer on `batch` samples; those that cannot be measured are left out."""
        found: dict[str, PairedLatency] = {}
        for layer_id, layer in self._layers.items():
            kernels = bool(active_seeds(layer))
            known = None if kernels else self._plain.get(layer_id)
            if known is not None and known[0] == batch:
                found[layer_id] = known[1]
                continue
            latency: PairedLatency | None = None
            with self._failures.isolated("paired latency", layer_id):
                latency = paired_latency(layer, batch)
            if latency is None:
                continue
            found[layer_id] = latency
            if kernels:
                self._plain.pop(layer_id, None)  # the base may change: a kernel can become a part of it
            else:
                self._plain[layer_id] = (batch, latency)
        return found


def paired_latency(layer: KasminaLayer, batch: int, pairs: int = PAIRS) -> PairedLatency | None:
    """Measure a layer's forward pass with and without its active kernels, alternating.

    Args:
        layer: Its counters do not change; without active kernels only the base is measured.
        batch: Samples of the pass; their values are 0.
        pairs: Number of pairs.

    Returns:
        Medians over the pairs; None on a device that has no clock of its own here.
    """
    weight = next(layer.base.parameters())
    device = weight.device.type
    if device not in ("cpu", "cuda"):
        return None
    sample = torch.zeros(batch, *layer.spec.sample_input_shape, dtype=weight.dtype, device=weight.device)
    seeds = active_seeds(layer)
    without: list[tuple[Any, Any]] = []
    together: list[tuple[Any, Any]] = []
    with counters_kept([layer]), undisturbed(layer), undisturbed(layer.base):
        layer(sample)  # the first pass fills the caches
        for _ in range(pairs):
            with ExitStack() as gates:
                for index in seeds:
                    gates.enter_context(layer.gated_off(index))
                without.append(_timed(layer, sample, device))
            if seeds:
                together.append(_timed(layer, sample, device))
    if device == "cuda":
        torch.cuda.synchronize(weight.device)
    base = [_elapsed_ms(*marks) for marks in without]
    added = [_elapsed_ms(*marks) - first for marks, first in zip(together, base, strict=False)]
    return PairedLatency(statistics.median(base), statistics.median(added) if added else 0.0)


def _timed(layer: KasminaLayer, sample: Tensor, device: str) -> tuple[Any, Any]:
    """Run the layer; return the marks of a clock before and after it."""
    before = _mark(device)
    layer(sample)
    return before, _mark(device)


def _mark(device: str) -> Any:
    """Return the thread's processor time, seconds, or an event in the GPU's current stream."""
    if device == "cpu":
        return clock.thread_seconds()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()  # type: ignore[no-untyped-call]
    return event


def _elapsed_ms(before: Any, after: Any) -> float:
    """Return the time between two marks, ms."""
    return (after - before) * 1e3 if isinstance(before, float) else float(before.elapsed_time(after))
