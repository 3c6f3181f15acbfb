"""What features are computed from: a window, the windows before it and the topology, as arrays."""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tamiyo.models.features.scales import Array, known_or
from tamiyo.models.features.series import Series, newest, slope
from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.telemetry import ModelTopology

HISTORY_WINDOWS = 8
"""Windows before the current one that trends and streaks reach back to."""
MAX_COUNT = 2**53  # float64 is exact up to here, and no host counts further

# A layer needs attention below this health, above these rates, or when health falls by this much a window.
UNHEALTHY = 0.6
FAILING = 0.05
DEAD = 0.9
FALLING = -0.05


class GraphInputs(Series):
    """The run's last windows and its topology; arrays have one entry a layer, in the topology's order.

    Every property is computed once, when a feature first needs it.
    """

    def __init__(self, window: HealthWindow, topology: ModelTopology, history: Sequence[HealthWindow]) -> None:
        """Join a window with its run.

        Args:
            window: The current window.
            topology: The run's topology; its layers are the graph's nodes.
            history: The run's preceding windows, oldest first, at most HISTORY_WINDOWS.
        """
        super().__init__([*history, window], [layer.layer_id for layer in topology.layers])
        self.current = window
        self.topology = topology

    @cached_property
    def seeds(self) -> Array:
        """Slots for kernels, [layers]."""
        return np.array([layer.seeds for layer in self.topology.layers], dtype=np.float64)

    @cached_property
    def dormant_seeds(self) -> Array:
        """Seeds free to load, [layers]; all of them where no window reports any."""
        return self._counts("dormant_seeds", self.seeds)

    @cached_property
    def active_seeds(self) -> Array:
        """Seeds loading or active, [layers]."""
        return self._counts("active_seeds", 0.0 * self.seeds)

    @cached_property
    def fossilized_seeds(self) -> Array:
        """Permanent seeds, [layers]."""
        return self._counts("fossilized_seeds", 0.0 * self.seeds)

    @cached_property
    def error_seeds(self) -> Array:
        """Seeds in error recovery, [layers]."""
        return self._counts("error_seeds", 0.0 * self.seeds)

    @cached_property
    def health(self) -> Array:
        """Window mean of the health score, in [0, 1], [layers]; 1 where not measured."""
        return np.clip(known_or(self.window(-1, "health"), 1.0), 0.0, 1.0)

    @cached_property
    def health_trend(self) -> Array:
        """Least-squares change of health a window, [layers]; 0 below two measured windows."""
        return known_or(slope(np.clip(self.history("health"), 0.0, 1.0)), 0.0)

    @cached_property
    def problematic(self) -> npt.NDArray[np.bool_]:
        """Layers that need attention, [layers]."""
        failing = self.window(-1, "error_count") > FAILING
        dead = self.window(-1, "dead_neuron_ratio") > DEAD
        unwell = (self.health < UNHEALTHY) | (self.health_trend < FALLING)
        flags: npt.NDArray[np.bool_] = unwell | failing | dead | (self.error_seeds > 0)
        return flags

    @cached_property
    def growth_score(self) -> Array:
        """Newest window mean of the growth score, [layers]; NaN where never measured."""
        return self.newest("growth_score", "mean")

    @cached_property
    def without_kernel(self) -> npt.NDArray[np.bool_]:
        """Windows that a layer spent without an active kernel, if only in part, [windows, layers]."""
        bare: npt.NDArray[np.bool_] = self.history("active_seeds", "minimum") <= 0
        return bare

    @cached_property
    def kernel_contributions(self) -> Array:
        """Window means of contribution, [windows, layers]; 0 in a window without a kernel.

        Such a window ends a streak: the contributions before it belong to another kernel.
        """
        return np.where(self.without_kernel, 0.0, self.history("contribution"))

    @cached_property
    def contribution(self) -> Array:
        """Newest window mean of contribution, nats, [layers]; NaN without an active seed or a measurement."""
        return np.where(self.active_seeds > 0, self.newest("contribution", "mean"), np.nan)

    @cached_property
    def signals(self) -> Array:
        """Values in the window of each layer's most frequent metric, [layers]."""
        most = np.zeros(len(self.layers))
        for metric in self.current.metrics:
            most = np.maximum(most, known_or(self.window(-1, metric, "count"), 0.0))
        return most

    @cached_property
    def learning_rate_scale(self) -> Array:
        """Layer learning rate / the optimiser's, >= 0, [layers]; 1 where not reported."""
        return np.maximum(known_or(self.newest("learning_rate_scale"), 1.0), 0.0)

    @cached_property
    def parameters(self) -> int:
        """Trainable parameters now, kernels included; the topology's where no window reports them."""
        return self._count("parameters", self.topology.parameters)

    @cached_property
    def base_parameters(self) -> int:
        """Trainable parameters without kernels; the topology's where no window reports them."""
        return self._count("base_parameters", self.topology.parameters)

    @cached_property
    def steps_since_adaptation(self) -> int | None:
        """Steps from the run's last executed adaptation to the end of the window; None before the first.

        The host's last count, plus the steps between the window that reports it and the current one.
        """
        reported = self.model("steps_since_adaptation", "last")
        positions = np.flatnonzero(~np.isnan(reported))
        if not len(positions):
            return None
        elapsed = self.current.last_step - self.windows[int(positions[-1])].last_step
        return int(min(max(reported[positions[-1]], 0.0), MAX_COUNT)) + max(elapsed, 0)

    @cached_property
    def train_loss(self) -> Array:
        """Window means of the training loss, nats, [windows]; NaN where not measured."""
        return self.model("train_loss")

    @cached_property
    def validation_loss(self) -> Array:
        """Window means of the held-out loss, nats, [windows]; NaN where not measured."""
        return self.model("validation_loss")

    def _counts(self, metric: str, default: Array) -> Array:
        """Return the newest count of each layer, whole and >= 0."""
        found = self.newest(metric)
        return np.clip(np.rint(np.where(np.isnan(found), default, found)), 0, MAX_COUNT)

    def _count(self, metric: str, default: int) -> int:
        found = newest(self.model(metric, "last"))
        return default if math.isnan(found) else int(min(max(round(found), 0), MAX_COUNT))
