"""Joins a window with its topology into the graph that the policy sees."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.models.features import (
    EDGE_FEATURES,
    EDGE_KINDS,
    FEATURE_VERSION,
    GLOBAL_FEATURES,
    LAYER_TYPES,
    NODE_FEATURES,
    log10_above,
    signed_log,
    stack,
)
from tamiyo.models.series import Series, newest, relative_slope, slope, streak
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import graph_id
from tamiyo.schemas.telemetry import ModelTopology

HISTORY_WINDOWS = 8
MAX_COUNT = 2**53  # float64 is exact up to here, and a count is never honestly larger

# A layer needs attention below this health, above these rates, or when health falls by this much a window.
UNHEALTHY = 0.6
FAILING = 0.05
DEAD = 0.9
FALLING = -0.05

Array = npt.NDArray[np.float64]


@np.errstate(over="ignore", under="ignore", invalid="ignore")  # what overflows is bounded with everything else
def build_graph(window: HealthWindow, topology: ModelTopology, history: Sequence[HealthWindow]) -> ModelGraph:
    """Return the graph of `window`: pure, the same inputs give the same bytes.

    `history` is the run's preceding windows, oldest first; only the last HISTORY_WINDOWS count. Nodes are the
    topology's layers in its order, with signals or without; layers that only the window knows are left out.
    Raises RecordError where window, topology and history are not of one run.
    """
    past = list(history)[-HISTORY_WINDOWS:]
    if {topology.run_id, *(record.run_id for record in past)} != {window.run_id}:
        raise RecordError(f"window {window.window_id} of run {window.run_id} was joined with another run's records")
    layers = [layer.layer_id for layer in topology.layers]
    series = Series([*past, window], layers)
    seeds = np.array([layer.seeds for layer in topology.layers], dtype=np.float64)
    state = {
        "dormant": _counts(series, "dormant_seeds", seeds),
        "active": _counts(series, "active_seeds", 0.0 * seeds),
        "fossilized": _counts(series, "fossilized_seeds", 0.0 * seeds),
        "error": _counts(series, "error_seeds", 0.0 * seeds),
    }
    health = np.clip(_or(series.window(-1, "health"), 1.0), 0.0, 1.0)
    trend = _or(slope(np.clip(series.history("health"), 0.0, 1.0)), 0.0)
    problematic = _problematic(series, health, trend, state["error"])
    parameters = _count(series, "parameters", topology.parameters)
    base_parameters = _count(series, "base_parameters", topology.parameters)
    since = _steps_since_adaptation(series)
    scale = _positive(_or(series.newest("learning_rate_scale"), 1.0))

    nodes = _nodes(series, topology, state, seeds, health, trend, problematic, scale)
    index = {layer: node for node, layer in enumerate(layers)}
    source = [index[edge.source] for edge in topology.edges]
    target = [index[edge.target] for edge in topology.edges]
    edges = _edges(topology, source, target, nodes)
    whole = _globals(series, topology, state, health, trend, problematic, (parameters, base_parameters, since))
    return ModelGraph(
        run_id=window.run_id,
        graph_id=graph_id(window.window_id, topology.topology_id),
        window_id=window.window_id,
        topology_id=topology.topology_id,
        step=window.last_step,
        time_ms=window.time_ms,
        final=window.final,
        feature_version=FEATURE_VERSION,
        layer_id=layers,
        layer_type=[layer.type for layer in topology.layers],
        node_features=stack(nodes, NODE_FEATURES, (len(layers),)),
        edge_source=source,
        edge_target=target,
        edge_features=stack(edges, EDGE_FEATURES, (len(source),)),
        global_features=stack(whole, GLOBAL_FEATURES, ()),
        health=health.tolist(),
        health_trend=trend.tolist(),
        problematic=[layer for layer, flag in zip(layers, problematic, strict=True) if flag],
        signals=window.signals,
        dormant_seeds=state["dormant"].astype(int).tolist(),
        active_seeds=state["active"].astype(int).tolist(),
        fossilized_seeds=state["fossilized"].astype(int).tolist(),
        protected=[layer.protected for layer in topology.layers],
        learning_rate_scale=scale.tolist(),
        offers=[list(layer.blueprints) for layer in topology.layers],
        parameters=parameters,
        base_parameters=base_parameters,
        parameter_budget=topology.parameter_budget,
        steps_since_adaptation=since,
        cooldown_steps=topology.cooldown_steps,
        model_metrics={name: stats.mean for name, stats in sorted(window.model_metrics.items())},
    )


def _nodes(
    series: Series,
    topology: ModelTopology,
    state: dict[str, Array],
    seeds: Array,
    health: Array,
    trend: Array,
    problematic: npt.NDArray[np.bool_],
    scale: Array,
) -> dict[str, npt.ArrayLike]:
    """Node features by name, each [layers]."""
    types = [layer.type if layer.type in LAYER_TYPES else "other" for layer in topology.layers]
    growth = series.newest("growth_score", "mean")
    positive = _positive(_or(growth, 0.0))
    largest = positive.max()
    relative = positive / largest if largest > 0 else positive
    # A window that the layer spent without a kernel, if only in part, ends a streak: what came before was another's.
    bare = series.history("active_seeds", "minimum") <= 0
    contribution = np.where(bare, 0.0, series.history("contribution"))
    worth = np.where(state["active"] > 0, series.newest("contribution", "mean"), np.nan)
    recoveries = series.window(-1, "recovery_errors", "count")
    signals = _signals(series)
    share = np.maximum(seeds, 1.0)
    return {
        "health": health,
        "latency": series.window(-1, "execution_latency_ms") / 10.0,
        "error_rate": series.window(-1, "error_count"),
        "log_parameters": log10_above([layer.parameters for layer in topology.layers], 1.0),
        **{f"type_{name}": [float(kind == name) for kind in types] for name in LAYER_TYPES},
        "log_gradient_norm": log10_above(series.window(-1, "gradient_norm"), 1e-6),
        "log_update_ratio": log10_above(series.window(-1, "update_ratio"), 1e-6) + 3.0,
        "dead_neuron_ratio": series.window(-1, "dead_neuron_ratio"),
        "log_activation_variance": log10_above(series.window(-1, "activation_variance"), 1e-6),
        "avg_correlation": series.window(-1, "avg_correlation"),
        "log_growth_score": log10_above(growth, 1e-6),
        "growth_share": relative / max(float(relative.sum()), 1.0),
        "growth_measured": ~np.isnan(growth),
        "contribution": np.sign(worth) * log10_above(100.0 * np.minimum(np.abs(worth), 1e300), 1.0),
        "contribution_measured": ~np.isnan(worth),
        "contribution_negative": streak(contribution, (contribution <= 0) & ~bare) / HISTORY_WINDOWS,
        "contribution_positive": streak(contribution, contribution > 0) / HISTORY_WINDOWS,
        "tenure": (series.history("active_seeds", "maximum") > 0).sum(axis=0) / HISTORY_WINDOWS,
        "kernel_load": series.newest("kernel_load"),
        "alpha": series.newest("alpha"),
        "dormant_share": state["dormant"] / share,
        "active_share": state["active"] / share,
        "fossilized_share": state["fossilized"] / share,
        "error_share": state["error"] / share,
        "log_kernel_parameters": log10_above(series.newest("kernel_parameters"), 1.0),
        "log_learning_rate_scale": np.log2(np.where(scale > 0, scale, 1.0)),
        "cache_hit_rate": _or(series.window(-1, "cache_hit_rate"), 1.0),
        "recovery_errors": log10_above(recoveries, 1.0),
        "recovery_failures": 1.0 - series.window(-1, "recovery_success"),
        "health_trend": 10.0 * trend,
        "latency_trend": relative_slope(series.history("execution_latency_ms")),
        "gradient_trend": relative_slope(series.history("gradient_norm")),
        "growth_trend": relative_slope(series.history("growth_score")),
        "depth": np.arange(len(seeds)) / max(len(seeds) - 1, 1),
        "seen": signals > 0,
        "log_signals": log10_above(signals, 1.0),
        "protected": [float(layer.protected) for layer in topology.layers],
        "problematic": problematic,
    }


def _edges(
    topology: ModelTopology, source: list[int], target: list[int], nodes: dict[str, npt.ArrayLike]
) -> dict[str, npt.ArrayLike]:
    """Edge features by name, each [edges]."""
    elements = np.array([float(math.prod(layer.output_shape)) for layer in topology.layers])

    def across(name: str) -> Array:
        column = np.asarray(nodes[name], dtype=np.float64)
        return np.asarray(column[target] - column[source])

    return {
        **{f"kind_{name}": [float(edge.kind == name) for edge in topology.edges] for name in EDGE_KINDS},
        "log_elements": log10_above(elements[source], 1.0),
        "log_parameter_ratio": across("log_parameters"),
        "log_gradient_ratio": across("log_gradient_norm"),
        "health_difference": across("health"),
        "reversed": np.zeros(len(source)),
    }


def _globals(
    series: Series,
    topology: ModelTopology,
    state: dict[str, Array],
    health: Array,
    trend: Array,
    problematic: npt.NDArray[np.bool_],
    counts: tuple[int, int, int | None],
) -> dict[str, npt.ArrayLike]:
    """Global features by name, each a number."""
    parameters, base_parameters, since = counts
    window = series.windows[-1]
    train, validation = series.model("train_loss"), series.model("validation_loss")
    accuracy = series.model("validation_accuracy")
    losses = newest(train), newest(validation)
    magnitude = max(abs(losses[0]), abs(losses[1]), 1e-12)  # divided first: two losses of 1e308 have no sum
    gap = (losses[1] / magnitude - losses[0] / magnitude) / ((abs(losses[1]) + abs(losses[0])) / magnitude or 1.0)
    grown = parameters - base_parameters
    cooldown = max(0.0, 1 - since / topology.cooldown_steps) if since is not None and topology.cooldown_steps else 0.0
    throughput = series.model("throughput")
    return {
        "train_loss": signed_log(losses[0]),
        "validation_loss": signed_log(losses[1]),
        "validation_measured": not math.isnan(losses[1]),
        "train_loss_change": 10.0 * _change(train),
        "validation_loss_change": 10.0 * _change(validation),
        "train_loss_trend": 10.0 * relative_slope(train),
        "validation_loss_trend": 10.0 * relative_slope(validation),
        "loss_gap": gap,
        "train_accuracy": newest(series.model("train_accuracy")),
        "validation_accuracy": newest(accuracy),
        "accuracy_measured": not math.isnan(newest(accuracy)),
        "log_model_parameters": log10_above(parameters, 1.0),
        "parameter_growth": math.log10((parameters + 1) / (base_parameters + 1)),
        "budget_left": 1.0 - min(max(grown / topology.parameter_budget, 0.0), 1.0)
        if topology.parameter_budget
        else 0.0,
        "adapted": since is not None,
        "log_steps_since_adaptation": log10_above(since or 0, 1.0),
        "cooldown_left": cooldown,
        "log_step": log10_above(window.last_step, 1.0),
        "progress": min(window.last_step / topology.planned_steps, 1.0) if topology.planned_steps else 0.0,
        "progress_known": bool(topology.planned_steps),
        "windows_seen": (len(series.windows) - 1) / HISTORY_WINDOWS,
        "mean_health": health.mean(),
        "minimum_health": health.min(),
        "mean_health_trend": 10.0 * trend.mean(),
        "problematic_share": problematic.mean(),
        "grown_share": (state["active"] + state["fossilized"] > 0).mean(),
        "log_throughput": log10_above(newest(throughput), 1.0),
        "throughput_trend": 10.0 * relative_slope(throughput),
        "log_step_time": log10_above(newest(series.model("step_time_ms")), 1.0),
        "overhead_ratio": newest(series.model("overhead_ratio")),
        "log_memory": log10_above(newest(series.model("memory_bytes")), 1.0) - 6.0,
        "log_layers": math.log10(len(health)),
        "shed_share": window.shed / max(window.shed + window.signals, 1),
    }


def _problematic(series: Series, health: Array, trend: Array, error_seeds: Array) -> npt.NDArray[np.bool_]:
    """Which layers need attention."""
    failing = series.window(-1, "error_count") > FAILING
    dead = series.window(-1, "dead_neuron_ratio") > DEAD
    flags: npt.NDArray[np.bool_] = (health < UNHEALTHY) | (trend < FALLING) | failing | dead | (error_seeds > 0)
    return flags


def _steps_since_adaptation(series: Series) -> int | None:
    """As the host last told, carried on to the current window's last step."""
    told = series.model("steps_since_adaptation", "last")
    positions = np.flatnonzero(~np.isnan(told))
    if not len(positions):
        return None
    elapsed = series.windows[-1].last_step - series.windows[int(positions[-1])].last_step
    return int(min(max(told[positions[-1]], 0.0), MAX_COUNT)) + max(elapsed, 0)


def _change(values: Array) -> float:
    """The last known entry against the one before, as a share of it; NaN below two."""
    known = values[~np.isnan(values)]
    if len(known) < 2 or known[-2] == 0:
        return float("nan")
    return float((known[-1] / abs(known[-2])) - np.sign(known[-2]))


def _signals(series: Series) -> Array:
    """Values in the window of each layer's most frequent metric, [layers]."""
    most = np.zeros(len(series.layers))
    for metric in series.windows[-1].metrics:
        most = np.maximum(most, _or(series.window(-1, metric, "count"), 0.0))
    return most


def _counts(series: Series, metric: str, default: Array) -> Array:
    """The newest count a layer, whole numbers from 0 up."""
    found = series.newest(metric)
    return np.clip(np.rint(np.where(np.isnan(found), default, found)), 0, MAX_COUNT)


def _count(series: Series, metric: str, default: int) -> int:
    found = newest(series.model(metric, "last"))
    return default if math.isnan(found) else int(min(max(round(found), 0), MAX_COUNT))


def _or(values: Array, default: float) -> Array:
    return np.where(np.isnan(values), default, values)


def _positive(values: Array) -> Array:
    return np.maximum(values, 0.0)
