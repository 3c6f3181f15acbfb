"""The feature catalogue: every number the policy sees, its unit, its scale and where it comes from.

Scales are fixed, never learned from data: a graph means the same to every version of the policy. A value that was not
measured is 0 and a `_measured` or `_known` column beside it says so. Everything is finite and within +-LIMIT.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.record import Tensor

FEATURE_VERSION = 1
"""Raised with any change to a name, an order or a formula: a policy reads only the catalogue it was trained on."""

LIMIT = 10.0
LAYER_TYPES = ("linear", "conv1d", "conv2d", "other")
EDGE_KINDS = ("data", "skip", "order")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a graph: where it comes from and how it is scaled."""

    name: str
    unit: str
    normalisation: str
    source: str


NODE_FEATURES: tuple[Feature, ...] = (
    # The specification's, in its order.
    Feature("health", "0..1", "x; 1 where not measured", "window mean of health"),
    Feature("latency", "ms", "x / 10", "window mean of execution_latency_ms"),
    Feature("error_rate", "errors a signal", "x", "window mean of error_count"),
    Feature("log_parameters", "parameters", "log10(x + 1)", "topology: the layer's own parameters"),
    *(Feature(f"type_{name}", "flag", "one-hot", "topology: the layer's type") for name in LAYER_TYPES),
    # How the layer learns.
    Feature("log_gradient_norm", "L2 norm", "log10(x + 1e-6)", "window mean of gradient_norm"),
    Feature("log_update_ratio", "ratio", "log10(x + 1e-6) + 3: 0 at a healthy 1e-3", "window mean of update_ratio"),
    Feature("dead_neuron_ratio", "0..1", "x", "window mean of dead_neuron_ratio"),
    Feature("log_activation_variance", "variance", "log10(x + 1e-6)", "window mean of activation_variance"),
    Feature("avg_correlation", "0..1", "x", "window mean of avg_correlation"),
    Feature("log_growth_score", "score", "log10(x + 1e-6)", "newest window mean of growth_score"),
    Feature("growth_share", "0..1", "x / sum over the network: scores compare within one only", "as log_growth_score"),
    Feature("growth_measured", "flag", "1 where a growth_score is known", "windows in sight"),
    # What its kernels are worth, and its seeds.
    Feature("contribution", "nats", "sign(x) log10(1 + 100 |x|)", "newest window mean of contribution"),
    Feature("contribution_measured", "flag", "1 where known while a seed is active", "windows in sight"),
    Feature(
        "contribution_negative",
        "windows",
        "x / 8",
        "newest measured windows in a row with a kernel and contribution <= 0",
    ),
    Feature(
        "contribution_positive",
        "windows",
        "x / 8",
        "newest measured windows in a row with a kernel and contribution > 0",
    ),
    Feature("tenure", "windows", "x / 8", "windows in sight with an active seed"),
    Feature("kernel_load", "0..1", "x", "newest last of kernel_load"),
    Feature("alpha", "0..1", "x", "newest last of alpha"),
    Feature("dormant_share", "of the seeds", "x", "newest last of dormant_seeds"),
    Feature("active_share", "of the seeds", "x", "newest last of active_seeds"),
    Feature("fossilized_share", "of the seeds", "x", "newest last of fossilized_seeds"),
    Feature("error_share", "of the seeds", "x", "newest last of error_seeds"),
    Feature("log_kernel_parameters", "parameters", "log10(x + 1)", "newest last of kernel_parameters"),
    Feature("log_learning_rate_scale", "ratio", "log2(x), 0 at or below 0", "newest last of learning_rate_scale"),
    # How it executes.
    Feature("cache_hit_rate", "0..1", "x; 1 where not measured", "window mean of cache_hit_rate"),
    Feature("recovery_errors", "errors", "log10(x + 1)", "recoveries in the window"),
    Feature("recovery_failures", "0..1", "1 - x; 0 where there were none", "window mean of recovery_success"),
    # Where it is going, by least squares over the windows in sight.
    Feature("health_trend", "a window", "10 x", "window means of health"),
    Feature("latency_trend", "share a window", "slope / mean", "window means of execution_latency_ms"),
    Feature("gradient_trend", "share a window", "slope / mean", "window means of gradient_norm"),
    Feature("growth_trend", "share a window", "slope / mean", "window means of growth_score"),
    # Where it stands.
    Feature("depth", "0..1", "position / (layers - 1)", "topology order"),
    Feature("seen", "flag", "1 where the layer had signals", "window"),
    Feature("log_signals", "signals", "log10(x + 1)", "values of the layer's most frequent metric"),
    Feature("protected", "flag", "1 where it must not be adapted", "topology"),
    Feature("problematic", "flag", "1 where it needs attention", "graph"),
)

EDGE_FEATURES: tuple[Feature, ...] = (
    *(Feature(f"kind_{name}", "flag", "one-hot", "topology: the edge's kind") for name in EDGE_KINDS),
    Feature("log_elements", "values a sample", "log10(x + 1)", "topology: the source's output shape"),
    Feature("log_parameter_ratio", "ratio", "log10 of (target + 1) / (source + 1)", "topology: own parameters"),
    Feature("log_gradient_ratio", "ratio", "difference of log_gradient_norm", "node features"),
    Feature("health_difference", "-1..1", "target - source", "node features"),
    Feature("reversed", "flag", "0 in the record; 1 on the copy against the flow", "batch"),
)

GLOBAL_FEATURES: tuple[Feature, ...] = (
    Feature("train_loss", "nats", "sign(x) ln(1 + |x|)", "window mean of train_loss"),
    Feature("validation_loss", "nats", "sign(x) ln(1 + |x|)", "newest window mean of validation_loss"),
    Feature("validation_measured", "flag", "1 where a validation_loss is known", "windows in sight"),
    Feature("train_loss_change", "share", "10 x (x - previous) / |previous|", "the last two window means"),
    Feature("validation_loss_change", "share", "10 x (x - previous) / |previous|", "the last two window means"),
    Feature("train_loss_trend", "share a window", "10 x slope / mean", "least squares over the windows in sight"),
    Feature("validation_loss_trend", "share a window", "10 x slope / mean", "least squares over the windows in sight"),
    Feature("loss_gap", "-1..1", "(validation - train) / (|validation| + |train|)", "the two losses"),
    Feature("train_accuracy", "0..1", "x", "newest window mean of train_accuracy"),
    Feature("validation_accuracy", "0..1", "x", "newest window mean of validation_accuracy"),
    Feature("accuracy_measured", "flag", "1 where a validation_accuracy is known", "windows in sight"),
    Feature("log_model_parameters", "parameters", "log10(x + 1)", "newest parameters"),
    Feature("parameter_growth", "ratio", "log10 of parameters / base_parameters", "newest parameters"),
    Feature("budget_left", "0..1", "1 - kernel parameters / budget", "newest parameters, topology"),
    Feature("adapted", "flag", "1 after the run's first adaptation", "steps_since_adaptation"),
    Feature("log_steps_since_adaptation", "steps", "log10(x + 1); 0 before the first", "steps_since_adaptation"),
    Feature("cooldown_left", "0..1", "share of the host's cooldown still to go", "steps_since_adaptation, topology"),
    Feature("log_step", "steps", "log10(x + 1)", "window"),
    Feature("progress", "0..1", "step / planned_steps; 0 where unknown", "window, topology"),
    Feature("progress_known", "flag", "1 where planned_steps is known", "topology"),
    Feature("windows_seen", "windows", "x / 8", "preceding windows in sight"),
    Feature("mean_health", "0..1", "x", "graph"),
    Feature("minimum_health", "0..1", "x", "graph"),
    Feature("mean_health_trend", "a window", "10 x", "graph"),
    Feature("problematic_share", "0..1", "x", "graph"),
    Feature("grown_share", "0..1", "layers that carry a kernel", "graph"),
    Feature("log_throughput", "samples a second", "log10(x + 1)", "window mean of throughput"),
    Feature("throughput_trend", "share a window", "10 x slope / mean", "least squares over the windows in sight"),
    Feature("log_step_time", "ms", "log10(x + 1)", "window mean of step_time_ms"),
    Feature("overhead_ratio", "ratio", "x", "newest window mean of overhead_ratio"),
    Feature("log_memory", "bytes", "log10(x + 1) - 6", "newest window mean of memory_bytes"),
    Feature("log_layers", "layers", "log10(x)", "topology"),
    Feature("shed_share", "0..1", "shed / (shed + signals)", "window"),
)

_NODE = {feature.name: index for index, feature in enumerate(NODE_FEATURES)}
_GLOBAL = {feature.name: index for index, feature in enumerate(GLOBAL_FEATURES)}


def bounded(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return `values` as float32 within +-LIMIT; what is not a number is 0, infinities are the limit."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=LIMIT, neginf=-LIMIT)
    return np.clip(array, -LIMIT, LIMIT).astype(np.float32)


def log10_above(values: npt.ArrayLike, offset: float) -> Array:
    """Return log10(max(x, 0) + offset); NaN stays NaN."""
    return np.log10(np.maximum(np.asarray(values, dtype=np.float64), 0.0) + offset)


def signed_log(values: npt.ArrayLike) -> Array:
    """Return sign(x) ln(1 + |x|)."""
    array = np.asarray(values, dtype=np.float64)
    return np.sign(array) * np.log1p(np.abs(array))


def require_catalogue(graph: ModelGraph) -> None:
    """Raise PolicyError unless the graph was built by this catalogue."""
    shape = graph.node_features.shape[1], graph.edge_features.shape[-1], *graph.global_features.shape
    expected = len(NODE_FEATURES), len(EDGE_FEATURES), len(GLOBAL_FEATURES)
    if graph.feature_version != FEATURE_VERSION or shape != expected:
        raise PolicyError(
            f"graph {graph.graph_id} has feature version {graph.feature_version} and widths {shape}; this program "
            f"reads version {FEATURE_VERSION} with {expected}: run all stages from one release"
        )


def node_column(graph: ModelGraph, name: str) -> npt.NDArray[np.float32]:
    """Return node feature `name` of every node, [nodes]. Raises PolicyError for another catalogue's graph."""
    require_catalogue(graph)
    column: npt.NDArray[np.float32] = graph.node_features.numpy()[:, _NODE[name]]
    return column


def global_value(graph: ModelGraph, name: str) -> float:
    """Return global feature `name`. Raises PolicyError for another catalogue's graph."""
    require_catalogue(graph)
    return float(graph.global_features.numpy()[_GLOBAL[name]])


def stack(values: dict[str, npt.ArrayLike], features: tuple[Feature, ...], shape: tuple[int, ...]) -> Tensor:
    """Return columns by name as a tensor [*shape, features], bounded, in the catalogue's order."""
    columns = [np.broadcast_to(bounded(values[feature.name]), shape) for feature in features]
    return Tensor.of(np.stack(columns, axis=-1))
