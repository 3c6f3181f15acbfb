"""What estimates an adaptation's gain: a rule over two measurements, or a model fitted to twins."""

from __future__ import annotations

from typing import Protocol

from tamiyo.streams.stages.rewards.counterfactual import CounterfactualEstimator
from tamiyo.streams.stages.rewards.evidence import Case
from tamiyo.streams.stages.rewards.fitted import load_fitted
from tamiyo.streams.stages.rewards.gain import Gain, combine
from tamiyo.streams.stages.rewards.projection import ProjectionEstimator


class GainEstimator(Protocol):
    """Estimates gains; a pure function of the case."""

    @property
    def version(self) -> str:
        """Name of the estimator, recorded in every reward analysis."""

    @property
    def one_quantity(self) -> bool:
        """Whether the gains of all spans are views of one quantity, so that the newest replaces the earlier ones."""

    def gain(self, case: Case) -> Gain | None:
        """Return the gain as far as it is known, or None if no loss was measured in the span."""


class RuleEstimator:
    """The smaller of two measurements, without a model: the projected trend and the gated counterfactual.

    It agrees with the truth at r = .4 (design, section 11); the fitted estimator replaced it, and is compared with it.
    """

    version = "rule"
    one_quantity = False
    """Each span has its own gain; the whole is their weighted mean."""

    def gain(self, case: Case) -> Gain | None:
        """Return what `combine` makes of the two measurements over the windows of the span."""
        counterfactual = CounterfactualEstimator(case.adaptation, case.before)
        projection = ProjectionEstimator(case.adaptation, case.before, counterfactual)
        return combine(projection.gain(case.inside), counterfactual.gain(case.inside))


def load_estimator(name: str) -> GainEstimator:
    """Return the estimator that a setting names: "builtin", "rule", or an fsspec URL.

    Raises:
        PolicyError: The file cannot be read, or is no estimator.
    """
    return RuleEstimator() if name == "rule" else load_fitted(name)
