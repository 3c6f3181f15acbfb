"""The counterfactual: how much worse the network would be without a layer's kernels, on held-out data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host._common import clock
from tamiyo.host._common.undisturbed import undisturbed
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import SeedState
from tamiyo.host._probes.failures import Failures
from tamiyo.host._topology.tracing import call

_LATENCY_REPEATS = 5


class HeldOutBatch:
    """A fixed batch that the network does not train on, and the loss on it."""

    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], inputs: Any, targets: Any) -> None:
        """Take `inputs` as `attach`'s example_input; loss = loss_fn(model(inputs), targets), a mean in nats."""
        self.failures = Failures()
        """Passes that raised an error, in the model or in `loss_fn`."""
        self._model = model
        self._loss_fn = loss_fn
        self._inputs = inputs
        self._targets = targets

    def of(self, model: nn.Module) -> HeldOutBatch:
        """Return the same batch for another model."""
        other = HeldOutBatch(model, self._loss_fn, self._inputs, self._targets)
        other.failures = self.failures
        return other

    def loss(self) -> float | None:
        """Return the loss in eval mode, nats; None if it is not finite, or the pass fails.

        The pass leaves no trace. A model that draws random numbers in eval mode draws the same ones at every call
        between two steps, so that two losses differ only by what was changed in between.
        """
        loss = math.nan
        with self.failures.isolated("held-out loss"), undisturbed(self._model):
            loss = float(self._loss_fn(call(self._model, self._inputs), self._targets))
        return loss if math.isfinite(loss) else None

    def contributions(self, layers: Iterable[KasminaLayer]) -> dict[str, float]:
        """Return what each layer's kernels contribute: the loss without them minus the loss with them.

        It takes one forward pass per measured layer, and one more.

        Args:
            layers: Those without loading or active kernels are left out.

        Returns:
            Contribution by layer_id, nats; positive if the kernels help.
        """
        grown = {layer: active_seeds(layer) for layer in layers}
        grown = {layer: seeds for layer, seeds in grown.items() if seeds}
        found: dict[str, float] = {}
        with_all = self.loss() if grown else None
        if with_all is None:
            return found
        for layer, seeds in grown.items():
            with ExitStack() as gates:
                for index in seeds:
                    gates.enter_context(layer.gated_off(index))
                without = self.loss()
            if without is not None:
                found[layer.layer_id] = without - with_all
        return found


def active_seeds(layer: KasminaLayer) -> list[int]:
    """Return the indices of the seeds whose kernel contributes to the output and can still be unloaded."""
    return [s.index for s in layer.seeds if s.live and s.state in (SeedState.LOADING, SeedState.ACTIVE)]


def latency_ms(layer: KasminaLayer, batch: int) -> float:
    """Return the median forward latency of a layer on `batch` samples, ms; the layer's counters do not change."""
    weight = next(layer.base.parameters())
    sample = torch.zeros(batch, *layer.spec.sample_input_shape, dtype=weight.dtype, device=weight.device)
    counters, times = replace(layer.performance), []
    with undisturbed(layer), undisturbed(layer.base):  # a base in place is no part of the layer
        for _ in range(_LATENCY_REPEATS):
            started = clock.seconds()
            layer(sample)
            times.append((clock.seconds() - started) * 1e3)
    layer.performance = counters
    return statistics.median(times)


@contextmanager
def counters_kept(layers: Iterable[KasminaLayer]) -> Iterator[None]:
    """Leave the layers' counters, and the executions without an error that forgive earlier ones, as they were."""
    kept = [(layer, replace(layer.performance)) for layer in layers]
    counts = [(s, s.executions, s.clean, s.errors, s.probation) for layer, _ in kept for s in layer.seeds if s.loaded]
    try:
        yield
    finally:
        for layer, performance in kept:
            layer.performance = performance
        for seed, executions, clean, errors, probation in counts:
            if seed.errors <= errors:  # nothing failed meanwhile: a failure counts wherever it happens
                seed.executions, seed.clean, seed.errors, seed.probation = executions, clean, errors, probation
