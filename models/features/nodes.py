"""The features of a layer, each one function of the run's windows and topology."""

import numpy as np

from tamiyo.models.features.catalogue import Catalogue
from tamiyo.models.features.inputs import HISTORY_WINDOWS, GraphInputs
from tamiyo.models.features.scales import Array, known_or, log10_above
from tamiyo.models.features.series import relative_slope, streak

LAYER_TYPES = ("linear", "conv1d", "conv2d", "other")

node_features = Catalogue[GraphInputs]()
feature = node_features.add

# The specification's, in its order.


@feature(unit="0..1", scale="x", source="KernelPerformance, by intake's health score")
def health(g: GraphInputs) -> Array:
    """Window mean of the health score; 1 where not measured."""
    return g.health


@feature(unit="ms", scale="x / 10", source="KernelPerformance.execution_latency_ms")
def latency(g: GraphInputs) -> Array:
    """Window mean."""
    return g.window(-1, "execution_latency_ms") / 10.0


@feature(unit="errors a signal", scale="x", source="KernelPerformance.error_count")
def error_rate(g: GraphInputs) -> Array:
    """Window mean."""
    return g.window(-1, "error_count")


@feature(unit="parameters", scale="log10(x + 1)", source="LayerNode.parameters")
def log_parameters(g: GraphInputs) -> Array:
    """The layer's own parameters, without kernels."""
    return log10_above([layer.parameters for layer in g.topology.layers], 1.0)


@node_features.add_one_hot(LAYER_TYPES, source="LayerNode.type")
def type(g: GraphInputs, member: str) -> list[bool]:
    """1 where the layer is of this type; a type outside the list counts as other."""
    known = (layer.type if layer.type in LAYER_TYPES else "other" for layer in g.topology.layers)
    return [kind == member for kind in known]


# How the layer learns.


@feature(unit="L2 norm", scale="log10(x + 1e-6)", source="LayerHealth.gradient_norm")
def log_gradient_norm(g: GraphInputs) -> Array:
    """Window mean."""
    return log10_above(g.window(-1, "gradient_norm"), 1e-6)


@feature(unit="ratio", scale="log10(x + 1e-6) + 3: 0 at a healthy 1e-3", source="LayerHealth.update_ratio")
def log_update_ratio(g: GraphInputs) -> Array:
    """Window mean of |parameter change of one step| / |parameters|."""
    return log10_above(g.window(-1, "update_ratio"), 1e-6) + 3.0


@feature(unit="0..1", scale="x", source="KernelPerformance.dead_neuron_ratio")
def dead_neuron_ratio(g: GraphInputs) -> Array:
    """Window mean."""
    return g.window(-1, "dead_neuron_ratio")


@feature(unit="variance", scale="log10(x + 1e-6)", source="KernelPerformance.activation_variance")
def log_activation_variance(g: GraphInputs) -> Array:
    """Window mean."""
    return log10_above(g.window(-1, "activation_variance"), 1e-6)


@feature(unit="0..1", scale="x", source="KernelPerformance.avg_correlation")
def avg_correlation(g: GraphInputs) -> Array:
    """Window mean."""
    return g.window(-1, "avg_correlation")


@feature(unit="score", scale="log10(x + 1e-6)", source="LayerHealth.growth_score")
def log_growth_score(g: GraphInputs) -> Array:
    """Newest window mean."""
    return log10_above(g.growth_score, 1e-6)


@feature(unit="0..1", scale="x", source="LayerHealth.growth_score")
def growth_share(g: GraphInputs) -> Array:
    """Newest window mean / its sum over the layers: scores compare within one network only."""
    positive = np.maximum(known_or(g.growth_score, 0.0), 0.0)
    largest = positive.max()
    # Divided by the largest first: the sum of two scores of 1e308 would overflow.
    relative = positive / largest if largest > 0 else positive
    return np.asarray(relative / max(float(relative.sum()), 1.0))


@feature(unit="flag", scale="x", source="LayerHealth.growth_score")
def growth_measured(g: GraphInputs) -> Array:
    """1 where a window in sight has a growth score."""
    return 1.0 - np.isnan(g.growth_score)


# What its kernels are worth, and its seeds.


@feature(unit="nats", scale="sign(x) log10(1 + 100 |x|)", source="LayerHealth.contribution")
def contribution(g: GraphInputs) -> Array:
    """Newest window mean while a seed is active: held-out loss with the layer's kernels off minus on."""
    return np.sign(g.contribution) * log10_above(100.0 * np.minimum(np.abs(g.contribution), 1e300), 1.0)


@feature(unit="flag", scale="x", source="LayerHealth.contribution")
def contribution_measured(g: GraphInputs) -> Array:
    """1 where a seed is active and its contribution is known."""
    return 1.0 - np.isnan(g.contribution)


@feature(unit="windows", scale="x / 8", source="LayerHealth.contribution")
def contribution_negative(g: GraphInputs) -> Array:
    """Newest measured windows in a row with a kernel and contribution <= 0."""
    harmful = (g.kernel_contributions <= 0) & ~g.without_kernel
    return streak(g.kernel_contributions, harmful) / HISTORY_WINDOWS


@feature(unit="windows", scale="x / 8", source="LayerHealth.contribution")
def contribution_positive(g: GraphInputs) -> Array:
    """Newest measured windows in a row with a kernel and contribution > 0."""
    return streak(g.kernel_contributions, g.kernel_contributions > 0) / HISTORY_WINDOWS


@feature(unit="windows", scale="x / 8", source="LayerHealth.active_seeds")
def active_windows(g: GraphInputs) -> Array:
    """Windows in sight with an active seed."""
    return np.asarray((g.history("active_seeds", "maximum") > 0).sum(axis=0) / HISTORY_WINDOWS)


@feature(unit="0..1", scale="x", source="LayerHealth.kernel_load")
def kernel_load(g: GraphInputs) -> Array:
    """Newest value: seeds in use / seeds."""
    return g.newest("kernel_load")


@feature(unit="0..1", scale="x", source="LayerHealth.alpha")
def alpha(g: GraphInputs) -> Array:
    """Newest value: mean blending factor of the seeds in use."""
    return g.newest("alpha")


@feature(unit="0..1", scale="x", source="LayerHealth.dormant_seeds, LayerNode.seeds")
def dormant_share(g: GraphInputs) -> Array:
    """Newest dormant seeds / the layer's seeds."""
    return _share_of_seeds(g, g.dormant_seeds)


@feature(unit="0..1", scale="x", source="LayerHealth.active_seeds, LayerNode.seeds")
def active_share(g: GraphInputs) -> Array:
    """Newest active seeds / the layer's seeds."""
    return _share_of_seeds(g, g.active_seeds)


@feature(unit="0..1", scale="x", source="LayerHealth.fossilized_seeds, LayerNode.seeds")
def fossilized_share(g: GraphInputs) -> Array:
    """Newest fossilized seeds / the layer's seeds."""
    return _share_of_seeds(g, g.fossilized_seeds)


@feature(unit="0..1", scale="x", source="LayerHealth.error_seeds, LayerNode.seeds")
def error_share(g: GraphInputs) -> Array:
    """Newest seeds in error recovery / the layer's seeds."""
    return _share_of_seeds(g, g.error_seeds)


@feature(unit="parameters", scale="log10(x + 1)", source="LayerHealth.kernel_parameters")
def log_kernel_parameters(g: GraphInputs) -> Array:
    """Newest value: parameters of the layer's kernels."""
    return log10_above(g.newest("kernel_parameters"), 1.0)


@feature(unit="ratio", scale="log2(x); 0 at or below 0", source="LayerHealth.learning_rate_scale")
def log_learning_rate_scale(g: GraphInputs) -> Array:
    """Newest value: the layer's learning rate / the optimiser's; 1 where not reported."""
    return np.asarray(np.log2(np.where(g.learning_rate_scale > 0, g.learning_rate_scale, 1.0)))


# How it executes.


@feature(unit="0..1", scale="x", source="KernelPerformance.cache_hit_rate")
def cache_hit_rate(g: GraphInputs) -> Array:
    """Window mean; 1 where not measured."""
    return known_or(g.window(-1, "cache_hit_rate"), 1.0)


@feature(unit="errors", scale="log10(x + 1)", source="ErrorRecoveryEvent.layer_id")
def recovery_errors(g: GraphInputs) -> Array:
    """Recoveries of the layer's kernels in the window."""
    return log10_above(g.window(-1, "recovery_errors", "count"), 1.0)


@feature(unit="0..1", scale="1 - x; 0 where there was no recovery", source="ErrorRecoveryEvent.success")
def recovery_failures(g: GraphInputs) -> Array:
    """Share of the window's recoveries that succeeded."""
    return 1.0 - g.window(-1, "recovery_success")


# Where it is going, by least squares over the windows in sight.


@feature(unit="a window", scale="10 x", source="KernelPerformance, by intake's health score")
def health_trend(g: GraphInputs) -> Array:
    """Slope of the window means of the health score; 0 below two."""
    return 10.0 * g.health_trend


@feature(unit="share a window", scale="x", source="KernelPerformance.execution_latency_ms")
def latency_trend(g: GraphInputs) -> Array:
    """Slope of the window means / their mean."""
    return relative_slope(g.history("execution_latency_ms"))


@feature(unit="share a window", scale="x", source="LayerHealth.gradient_norm")
def gradient_trend(g: GraphInputs) -> Array:
    """Slope of the window means / their mean."""
    return relative_slope(g.history("gradient_norm"))


@feature(unit="share a window", scale="x", source="LayerHealth.growth_score")
def growth_trend(g: GraphInputs) -> Array:
    """Slope of the window means / their mean."""
    return relative_slope(g.history("growth_score"))


# Where it is in the network, and whether it was seen.


@feature(unit="0..1", scale="x", source="ModelTopology.layers")
def depth(g: GraphInputs) -> Array:
    """Position in topology order / (layers - 1)."""
    return np.arange(len(g.layers)) / max(len(g.layers) - 1, 1)


@feature(unit="flag", scale="x", source="HealthWindow.layer_id")
def seen(g: GraphInputs) -> Array:
    """1 where the window has signals of the layer."""
    return np.asarray(g.signals > 0, dtype=np.float64)


@feature(unit="signals", scale="log10(x + 1)", source="LayerStats.count")
def log_signals(g: GraphInputs) -> Array:
    """Values of the layer's most frequent metric in the window."""
    return log10_above(g.signals, 1.0)


@feature(unit="flag", scale="x", source="LayerNode.protected")
def protected(g: GraphInputs) -> list[bool]:
    """1 where the layer must not be adapted."""
    return [layer.protected for layer in g.topology.layers]


@feature(unit="flag", scale="x", source="ModelGraph.problematic")
def problematic(g: GraphInputs) -> Array:
    """1 where the layer needs attention: unhealthy, failing, dying, or in error recovery."""
    return np.asarray(g.problematic, dtype=np.float64)


def _share_of_seeds(g: GraphInputs, count: Array) -> Array:
    return count / np.maximum(g.seeds, 1.0)
