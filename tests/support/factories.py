"""Topologies, windows and graphs for tests: realistic by default, every part of them adjustable."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tamiyo.models.graph import build_graph
from tamiyo.schemas.analysis import HealthWindow, LayerStats, ModelGraph, ModelStats, statistics_columns
from tamiyo.schemas.identity import identity, window_id
from tamiyo.schemas.telemetry import BlueprintOffer, LayerEdge, LayerNode, ModelTopology

BLUEPRINTS = ("parallel_expansion", "low_rank", "bottleneck", "depthwise_separable", "squeeze_excite")
CONV_BLUEPRINTS = ("parallel_expansion", "bottleneck", "depthwise_separable", "squeeze_excite")
LINEAR_BLUEPRINTS = ("parallel_expansion", "low_rank", "bottleneck")

Values = float | None | Sequence[float | None]

# What a healthy layer of a small network measures; a sequence has one entry a layer.
METRICS: dict[str, Values] = {
    "execution_latency_ms": 0.2,
    "cache_hit_rate": 1.0,
    "error_count": 0.0,
    "total_executions": 10.0,
    "activation_variance": 0.8,
    "dead_neuron_ratio": 0.1,
    "avg_correlation": 0.3,
    "health": 0.99,
    "gradient_norm": 0.3,
    "update_ratio": 1e-3,
    "growth_score": 0.05,
    "contribution": None,
    "kernel_load": 0.0,
    "alpha": 0.0,
    "dormant_seeds": 4.0,
    "active_seeds": 0.0,
    "fossilized_seeds": 0.0,
    "error_seeds": 0.0,
    "parameters": 132.0,
    "kernel_parameters": 0.0,
    "learning_rate_scale": 1.0,
}
MODEL_METRICS: dict[str, float] = {
    "train_loss": 1.2,
    "train_accuracy": 0.55,
    "validation_loss": 1.3,
    "validation_accuracy": 0.5,
    "throughput": 20_000.0,
    "memory_bytes": 10_000.0,
    "parameters": 574.0,
    "base_parameters": 574.0,
    "step_time_ms": 2.0,
    "overhead_ratio": 0.03,
    "dropped_records": 0.0,
}


def make_topology(
    layers: int = 3,
    *,
    type: str = "conv1d",
    run_id: str = "run-1",
    offers: Sequence[str] | None = None,
    offer_parameters: int = 500,
    parameter_budget: int = 20_000,
    cooldown_steps: int = 0,
    planned_steps: int | None = 3000,
    protected: Sequence[str] = (),
    seeds: int = 4,
    edges: Sequence[tuple[int, int]] | None = None,
) -> ModelTopology:
    """A chain of `layers` layers, "layer.0" and up, unless `edges` is given."""
    names = [f"layer.{index}" for index in range(layers)]
    if offers is None:
        offers = LINEAR_BLUEPRINTS if type == "linear" else CONV_BLUEPRINTS
    shape = [8] if type == "linear" else [6, 20]
    if edges is None:
        edges = [(index, index + 1) for index in range(layers - 1)]
    return ModelTopology(
        run_id=run_id,
        topology_id=identity("topology", run_id, layers, type),
        time_ms=1_700_000_000_000,
        task="test",
        layers=[
            LayerNode(
                layer_id=name,
                type=type,
                parameters=132,
                input_shape=shape,
                output_shape=shape,
                seeds=seeds,
                protected=name in protected,
                blueprints=[BlueprintOffer(name=offer, parameters=offer_parameters, flops=10_000) for offer in offers],
            )
            for name in names
        ],
        edges=[LayerEdge(source=names[source], target=names[target]) for source, target in edges],
        parameters=574,
        parameter_budget=parameter_budget,
        cooldown_steps=cooldown_steps,
        planned_steps=planned_steps,
    )


def make_stats(values: Sequence[float | None], *, count: int = 5, slope: float | None = 0.0) -> LayerStats:
    """Statistics of a metric that kept one value a layer through the window; None where it was not measured."""
    kept = np.array(values, dtype=np.float64)
    slopes = np.where(np.isnan(kept), np.nan, np.nan if slope is None else slope)
    return LayerStats(
        count=np.where(np.isnan(kept), 0.0, count),
        mean=kept,
        variance=0.0 * kept,
        minimum=kept,
        maximum=kept,
        last=kept,
        slope=slopes,
    )


def make_window(
    index: int = 0,
    *,
    layers: int | Sequence[str] = 3,
    width: int = 50,
    run_id: str = "run-1",
    final: bool = False,
    model: Mapping[str, float | None] | None = None,
    **metrics: Values,
) -> HealthWindow:
    """Window `index` of a run; keyword arguments replace METRICS, `model` replaces MODEL_METRICS (None: not there)."""
    names = [f"layer.{number}" for number in range(layers)] if isinstance(layers, int) else list(layers)
    columns: dict[str, LayerStats] = {}
    for name, values in {**METRICS, **metrics}.items():
        row = list(values) if isinstance(values, Sequence) else [values] * len(names)
        columns[name] = make_stats(row)
    return HealthWindow(
        run_id=run_id,
        window_id=window_id(run_id, "step", width, index * width),
        clock="step",
        start=index * width,
        end=(index + 1) * width,
        first_step=index * width,
        last_step=(index + 1) * width - 10,
        time_ms=1_700_000_000_000 + (index + 1) * 1000,
        final=final,
        layer_id=names,
        columns=statistics_columns(columns),
        model_metrics={
            name: ModelStats(count=5, mean=value, variance=0.0, minimum=value, maximum=value, last=value, slope=0.0)
            for name, value in {**MODEL_METRICS, **(model or {})}.items()
            if value is not None
        },
        signals=10 * len(names),
        frames=15,
        signals_digest=identity("digest", run_id, index),
    )


def make_graph(
    windows: int = 5,
    *,
    layers: int = 3,
    topology: ModelTopology | None = None,
    model: Mapping[str, float | None] | None = None,
    **metrics: Any,
) -> ModelGraph:
    """The graph after `windows` windows that all had these metrics."""
    topology = topology or make_topology(layers)
    names = [layer.layer_id for layer in topology.layers]
    run = [make_window(index, layers=names, run_id=topology.run_id, model=model, **metrics) for index in range(windows)]
    return build_graph(run[-1], topology, run[:-1])
