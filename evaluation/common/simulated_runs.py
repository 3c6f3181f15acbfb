"""Simulated training runs: the same arguments give the same telemetry, bit for bit.

Values move as in a training run (losses fall, gradients shrink, everything is noisy), so that deviations, windows and
features do realistic work.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from torch import nn, ones

from tamiyo.host import LayerSpec
from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import (
    BlueprintOffer,
    KernelPerformance,
    LayerEdge,
    LayerHealth,
    LayerNode,
    ModelPerformance,
    ModelTopology,
)
from tamiyo.schemas.topics import PERIODIC, TELEMETRY, Topic

TOPICS: dict[type[Record], Topic] = {topic.record: topic for topic in TELEMETRY}
"""The telemetry topic of each record type."""
COMPANIONS = [topic.name for topic in PERIODIC]
EPOCH_MS = 1_700_000_000_000  # any fixed time: event time must not depend on the wall clock
STEP_MS = 10
WIDTH = 64  # features of every simulated layer
PARAMETERS = WIDTH * WIDTH + WIDTH


@dataclass(frozen=True)
class Load:
    """How much telemetry: `runs` networks of `layers` layers, `frames` sampled steps each."""

    runs: int
    layers: int
    frames: int
    interval: int = 10
    """Training steps between two sampled steps."""
    seed: int = 0
    name: str = "bench"
    """Prefix of the runs' names: loads measured one after the other on one broker must not share a run."""

    @property
    def layer_signals(self) -> int:
        """Return the rows of all layer frames: two (kernel_performance, health_signals) a layer and sampled step."""
        return 2 * self.runs * self.layers * self.frames

    @property
    def run_ids(self) -> list[str]:
        """Return the names of the runs."""
        return [f"{self.name}-{self.seed}-{run}" for run in range(self.runs)]

    def windows(self, width: int) -> int:
        """Return how many windows of `width` steps all runs together fill."""
        return self.runs * len({frame * self.interval // width for frame in range(self.frames)})


def layer_names(layers: int) -> list[str]:
    """Return the layers' names in topology order."""
    return [f"layers.{index}" for index in range(layers)]


def topology(run_id: str, layers: int) -> ModelTopology:
    """Return a chain of Linear layers with a skip over every fourth, and the blueprints that fit each layer."""
    names = layer_names(layers)
    spec = LayerSpec.of(names[0], nn.Linear(WIDTH, WIDTH), ones(1, WIDTH))
    offers = [
        BlueprintOffer(name=name, parameters=CATALOGUE[name].parameters(spec), flops=CATALOGUE[name].flops(spec))
        for name in for_layer(spec)
    ]
    nodes = [
        LayerNode(
            layer_id=name, type="linear", parameters=PARAMETERS, input_shape=[WIDTH], output_shape=[WIDTH], seeds=2,
            spec=json.dumps(replace(spec, layer_id=name).to_dict()), blueprints=offers,
        )
        for name in names
    ]  # fmt: skip
    edges = [LayerEdge(source=a, target=b) for a, b in pairwise(names)]
    edges += [LayerEdge(source=a, target=b, kind="skip") for a, b in zip(names[::4], names[4::4], strict=False)]
    return ModelTopology(
        run_id=run_id, topology_id=f"chain-{layers}", time_ms=EPOCH_MS, task="benchmark", layers=nodes, edges=edges,
        parameters=layers * PARAMETERS, parameter_budget=8 * layers * PARAMETERS, cooldown_steps=100,
    )  # fmt: skip


def frames(load: Load, run: int) -> Iterator[Record]:
    """Yield one run's telemetry in order: three frames a sampled step; the last three are final."""
    random = np.random.default_rng((load.seed, run))
    names, n = layer_names(load.layers), load.layers
    run_id = load.run_ids[run]
    for frame in range(load.frames):
        step = frame * load.interval
        progress = frame / load.frames
        common = {
            "run_id": run_id, "step": step, "epoch": step // 50, "time_ms": EPOCH_MS + STEP_MS * step,
            "companions": COMPANIONS, "final": frame == load.frames - 1,
        }  # fmt: skip
        yield KernelPerformance(
            **common,
            layer_id=names,
            seed_id=[0] * n,
            chunk_id=[0] * n,
            execution_latency_ms=_column(random.gamma(20.0, 0.02, n)),
            cache_hit_rate=[1.0] * n,
            error_count=[int(value) for value in random.random(n) < 0.001],
            total_executions=[load.interval] * n,
            activation_variance=_column(random.gamma(8.0, 0.1, n)),
            dead_neuron_ratio=_column(random.beta(2.0, 20.0, n)),
            avg_correlation=_column(random.beta(5.0, 15.0, n)),
        )
        gradients = random.gamma(10.0, 0.1, n) * (1.2 - progress)
        yield LayerHealth(
            **common,
            layer_id=names,
            gradient_norm=_column(gradients),
            update_ratio=_column(gradients * 1e-3),
            growth_score=_column(gradients**2 * random.gamma(4.0, 0.25, n)),
            contribution=[None] * n,
            kernel_load=[0.0] * n,
            alpha=[0.0] * n,
            dormant_seeds=[2] * n,
            active_seeds=[0] * n,
            fossilized_seeds=[0] * n,
            error_seeds=[0] * n,
            parameters=[PARAMETERS] * n,
            kernel_parameters=[0] * n,
            learning_rate_scale=[1.0] * n,
        )
        loss = 0.5 + 1.8 * float(np.exp(-3 * progress)) + float(random.normal(0, 0.02))
        yield ModelPerformance(
            **common,
            train_loss=loss,
            train_accuracy=min(1.0, 0.2 + 0.6 * progress),
            validation_loss=loss + 0.05 if frame % 5 == 0 else None,
            validation_accuracy=None,
            throughput=10_000.0,
            memory_bytes=16 * n * PARAMETERS,
            parameters=n * PARAMETERS,
            base_parameters=n * PARAMETERS,
            step_time_ms=6.0,
        )


def _column(values: npt.NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values]
