"""The features of the whole network, each a number."""

import math

import numpy as np

from tamiyo.models.features.catalogue import Catalogue
from tamiyo.models.features.inputs import HISTORY_WINDOWS, GraphInputs
from tamiyo.models.features.scales import Array, log10_above, signed_log
from tamiyo.models.features.series import newest, relative_slope

global_features = Catalogue[GraphInputs]()
feature = global_features.add

# How well it learns.


@feature(unit="nats", scale="sign(x) ln(1 + |x|)", source="ModelPerformance.train_loss")
def train_loss(g: GraphInputs) -> Array:
    """Newest window mean."""
    return signed_log(newest(g.train_loss))


@feature(unit="nats", scale="sign(x) ln(1 + |x|)", source="ModelPerformance.validation_loss")
def validation_loss(g: GraphInputs) -> Array:
    """Newest window mean."""
    return signed_log(newest(g.validation_loss))


@feature(unit="flag", scale="x", source="ModelPerformance.validation_loss")
def validation_measured(g: GraphInputs) -> bool:
    """1 where a window in sight has a validation loss."""
    return not math.isnan(newest(g.validation_loss))


@feature(unit="share", scale="10 x", source="ModelPerformance.train_loss")
def train_loss_change(g: GraphInputs) -> float:
    """(Last window mean - the one before) / |the one before|."""
    return 10.0 * _change(g.train_loss)


@feature(unit="share", scale="10 x", source="ModelPerformance.validation_loss")
def validation_loss_change(g: GraphInputs) -> float:
    """(Last window mean - the one before) / |the one before|."""
    return 10.0 * _change(g.validation_loss)


@feature(unit="share a window", scale="10 x", source="ModelPerformance.train_loss")
def train_loss_trend(g: GraphInputs) -> Array:
    """Least-squares slope of the window means / their mean absolute value."""
    return 10.0 * relative_slope(g.train_loss)


@feature(unit="share a window", scale="10 x", source="ModelPerformance.validation_loss")
def validation_loss_trend(g: GraphInputs) -> Array:
    """Least-squares slope of the window means / their mean absolute value."""
    return 10.0 * relative_slope(g.validation_loss)


@feature(unit="-1..1", scale="x", source="ModelPerformance.train_loss, ModelPerformance.validation_loss")
def loss_gap(g: GraphInputs) -> float:
    """(Validation - train) / (|validation| + |train|), newest window means."""
    train, validation = newest(g.train_loss), newest(g.validation_loss)
    # Divided by the larger first: two losses of 1e308 have no finite sum.
    magnitude = max(abs(train), abs(validation), 1e-12)
    return (validation / magnitude - train / magnitude) / ((abs(validation) + abs(train)) / magnitude or 1.0)


@feature(unit="0..1", scale="x", source="ModelPerformance.train_accuracy")
def train_accuracy(g: GraphInputs) -> float:
    """Newest window mean."""
    return newest(g.model("train_accuracy"))


@feature(unit="0..1", scale="x", source="ModelPerformance.validation_accuracy")
def validation_accuracy(g: GraphInputs) -> float:
    """Newest window mean."""
    return newest(g.model("validation_accuracy"))


@feature(unit="flag", scale="x", source="ModelPerformance.validation_accuracy")
def accuracy_measured(g: GraphInputs) -> bool:
    """1 where a window in sight has a validation accuracy."""
    return not math.isnan(newest(g.model("validation_accuracy")))


# How large it is, and how much it may still grow.


@feature(unit="parameters", scale="log10(x + 1)", source="ModelPerformance.parameters")
def log_model_parameters(g: GraphInputs) -> Array:
    """Newest value; the topology's where not reported."""
    return log10_above(g.parameters, 1.0)


@feature(unit="ratio", scale="log10(x)", source="ModelPerformance.parameters, ModelPerformance.base_parameters")
def parameter_growth(g: GraphInputs) -> float:
    """(Parameters + 1) / (parameters without kernels + 1)."""
    return math.log10((g.parameters + 1) / (g.base_parameters + 1))


@feature(unit="0..1", scale="x", source="ModelPerformance.parameters, ModelTopology.parameter_budget")
def budget_left(g: GraphInputs) -> float:
    """1 - kernel parameters / the run's budget; 0 without a budget."""
    if not g.topology.parameter_budget:
        return 0.0
    used = (g.parameters - g.base_parameters) / g.topology.parameter_budget
    return 1.0 - min(max(used, 0.0), 1.0)


# Where the run stands.


@feature(unit="flag", scale="x", source="ModelPerformance.steps_since_adaptation")
def adapted(g: GraphInputs) -> bool:
    """1 after the run's first adaptation."""
    return g.steps_since_adaptation is not None


@feature(unit="steps", scale="log10(x + 1)", source="ModelPerformance.steps_since_adaptation")
def log_steps_since_adaptation(g: GraphInputs) -> Array:
    """Steps to the end of the window; 0 before the first adaptation."""
    return log10_above(g.steps_since_adaptation or 0, 1.0)


@feature(unit="0..1", scale="x", source="ModelPerformance.steps_since_adaptation, ModelTopology.cooldown_steps")
def cooldown_left(g: GraphInputs) -> float:
    """Share of the host's cooldown that remains; 0 without one, or before the first adaptation."""
    if g.steps_since_adaptation is None or not g.topology.cooldown_steps:
        return 0.0
    return max(0.0, 1 - g.steps_since_adaptation / g.topology.cooldown_steps)


@feature(unit="steps", scale="log10(x + 1)", source="HealthWindow.last_step")
def log_step(g: GraphInputs) -> Array:
    """Last step of the window."""
    return log10_above(g.current.last_step, 1.0)


@feature(unit="0..1", scale="x", source="HealthWindow.last_step, ModelTopology.planned_steps")
def progress(g: GraphInputs) -> float:
    """Last step / planned steps, at most 1; 0 where the plan is unknown."""
    return min(g.current.last_step / g.topology.planned_steps, 1.0) if g.topology.planned_steps else 0.0


@feature(unit="flag", scale="x", source="ModelTopology.planned_steps")
def progress_known(g: GraphInputs) -> bool:
    """1 where the planned steps are known."""
    return bool(g.topology.planned_steps)


@feature(unit="windows", scale="x / 8", source="HealthWindow.window_id")
def windows_seen(g: GraphInputs) -> float:
    """Windows in sight before the current one."""
    return (len(g.windows) - 1) / HISTORY_WINDOWS


# Its layers together.


@feature(unit="0..1", scale="x", source="ModelGraph.health")
def mean_health(g: GraphInputs) -> float:
    """Mean over the layers."""
    return float(g.health.mean())


@feature(unit="0..1", scale="x", source="ModelGraph.health")
def minimum_health(g: GraphInputs) -> float:
    """Minimum over the layers."""
    return float(g.health.min())


@feature(unit="a window", scale="10 x", source="ModelGraph.health_trend")
def mean_health_trend(g: GraphInputs) -> float:
    """Mean over the layers."""
    return float(10.0 * g.health_trend.mean())


@feature(unit="0..1", scale="x", source="ModelGraph.problematic")
def problematic_share(g: GraphInputs) -> float:
    """Layers that need attention / layers."""
    return float(g.problematic.mean())


@feature(unit="0..1", scale="x", source="LayerHealth.active_seeds, LayerHealth.fossilized_seeds")
def grown_share(g: GraphInputs) -> float:
    """Layers that carry a kernel / layers."""
    return float((g.active_seeds + g.fossilized_seeds > 0).mean())


# What it costs.


@feature(unit="samples a second", scale="log10(x + 1)", source="ModelPerformance.throughput")
def log_throughput(g: GraphInputs) -> Array:
    """Newest window mean."""
    return log10_above(newest(g.model("throughput")), 1.0)


@feature(unit="share a window", scale="10 x", source="ModelPerformance.throughput")
def throughput_trend(g: GraphInputs) -> Array:
    """Least-squares slope of the window means / their mean."""
    return 10.0 * relative_slope(g.model("throughput"))


@feature(unit="ms", scale="log10(x + 1)", source="ModelPerformance.step_time_ms")
def log_step_time(g: GraphInputs) -> Array:
    """Newest window mean."""
    return log10_above(newest(g.model("step_time_ms")), 1.0)


@feature(unit="ratio", scale="x", source="ModelPerformance.overhead_ratio")
def overhead_ratio(g: GraphInputs) -> float:
    """Newest window mean: time in the SDK / time of training without it."""
    return newest(g.model("overhead_ratio"))


@feature(unit="bytes", scale="log10(x + 1) - 6", source="ModelPerformance.memory_bytes")
def log_memory(g: GraphInputs) -> Array:
    """Newest window mean."""
    return log10_above(newest(g.model("memory_bytes")), 1.0) - 6.0


@feature(unit="layers", scale="log10(x)", source="ModelTopology.layers")
def log_layers(g: GraphInputs) -> float:
    """Layers of the topology."""
    return math.log10(len(g.layers))


@feature(unit="0..1", scale="x", source="HealthWindow.shed, HealthWindow.signals")
def shed_share(g: GraphInputs) -> float:
    """Shed layer-signals / (shed + kept)."""
    return g.current.shed / max(g.current.shed + g.current.signals, 1)


def _change(values: Array) -> float:
    """Return the last known entry relative to the one before; NaN below two, or where that one is 0."""
    known = values[~np.isnan(values)]
    if len(known) < 2 or known[-2] == 0:
        return float("nan")
    return float((known[-1] / abs(known[-2])) - np.sign(known[-2]))
