"""Estimate a gain from the host's counterfactual: held-out loss with the kernels gated off, minus with them on."""

import math
from collections.abc import Sequence
from statistics import median

from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.gain import Gain
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

LOWEST_RATIO = math.exp(-rc.ACCURACY_BOUND * rc.GAIN_UNIT)
"""Bound of (loss + contribution) / loss: a contribution may be below -loss by noise, and its log is bounded anyway."""


class CounterfactualEstimator:
    """Measures an adaptation by the contribution of its layer's kernels, in nats.

    What counts is the contribution added since the adaptation: a layer may have had kernels before it.
    """

    def __init__(self, adaptation: ExecutedAdaptation, before: Sequence[WindowSummary]) -> None:
        """Create the estimator.

        Args:
            adaptation: What was executed; without gates nothing is measured.
            before: Windows that ended before the adaptation, oldest first.
        """
        self._layer = adaptation.layer_id if adaptation.gated else None
        self._earlier: dict[str, float] = {}
        for window in before:
            self._earlier.update(window.contribution or {})

    def gain(self, windows: Sequence[WindowSummary]) -> Gain | None:
        """Return the median gain over `windows`, or None if none of them has a contribution of the layer and a loss."""
        if self._layer is None:
            return None
        held_out = [w.validation_loss for w in windows if w.validation_loss is not None]
        gains = []
        for window in windows:
            added = self._added(window, self._layer)
            loss = window.validation_loss or (median(held_out) if held_out else window.train_loss)
            if added is not None and loss is not None and loss > 0:
                gains.append(math.log(max((loss + added) / loss, LOWEST_RATIO)))
        return Gain(median(gains)) if gains else None

    def share(self, window: WindowSummary) -> float | None:
        """Return this layer's share, in 0..1, of what all layers' contributions gained; None if it was not measured."""
        own = None if self._layer is None else self._added(window, self._layer)
        if own is None:
            return None
        added = [self._added(window, layer) or 0.0 for layer in window.contribution or ()]
        positive = sum(max(0.0, value) for value in added)
        return max(0.0, own) / positive if positive > 0 else 0.0

    def _added(self, window: WindowSummary, layer: str) -> float | None:
        """Return the contribution that `layer` gained since the adaptation, in nats."""
        if window.contribution is None or layer not in window.contribution:
            return None
        return window.contribution[layer] - self._earlier.get(layer, 0.0)
