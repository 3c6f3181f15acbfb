"""The counterfactual: what a layer's kernels are worth now, on data the network does not train on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.seed import SeedState
from tamiyo.host.topology.tracing import call

_LATENCY_REPEATS = 5


class HeldOutBatch:
    """A fixed held-out batch and the loss on it."""

    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], inputs: Any, targets: Any) -> None:
        """`inputs` as `attach`'s example_input; loss = loss_fn(model(inputs), targets), a mean in nats."""
        self._model = model
        self._loss_fn = loss_fn
        self._inputs = inputs
        self._targets = targets

    def loss(self) -> float | None:
        """The loss in eval mode, as float32 has it; None where it is not finite."""
        with evaluating(self._model):
            loss = float(self._loss_fn(call(self._model, self._inputs), self._targets))
        return loss if math.isfinite(loss) else None

    def contributions(self, layers: Iterable[KasminaLayer]) -> dict[str, float]:
        """Loss with a layer's loading and active kernels gated off, minus on, nats, by layer_id.

        Layers without such kernels are left out; one forward pass a layer measured, and one more.
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
    """Indices of the seeds whose kernel shapes the output and could still be unloaded."""
    return [s.index for s in layer.seeds if s.live and s.state in (SeedState.LOADING, SeedState.ACTIVE)]


def latency_ms(layer: KasminaLayer, batch: int) -> float:
    """Median forward latency of a layer on `batch` samples of its shape, ms; its counters stay what they were."""
    weight = next(layer.base.parameters())
    sample = torch.zeros(batch, *layer.spec.sample_input_shape, dtype=weight.dtype, device=weight.device)
    counters, times = replace(layer.performance), []
    with evaluating(layer):
        for _ in range(_LATENCY_REPEATS):
            started = time.perf_counter()
            layer(sample)
            times.append((time.perf_counter() - started) * 1e3)
    layer.performance = counters
    return statistics.median(times)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: eval mode without gradients; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    try:
        if training:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
