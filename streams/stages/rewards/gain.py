"""The gain of an adaptation over one span, and the rule that combines its two measurements."""

from dataclasses import dataclass

NOISE_AT_HALF_CONFIDENCE = 0.2  # log loss of one window: a baseline that scatters by a fifth counts half
WIDTH_AT_HALF_CONFIDENCE = 0.3  # log loss: an interval of +- a quarter of the loss counts half
UNPROJECTED_CONFIDENCE = 0.5  # no baseline: a kernel the network merely depends on measures as well as a useful one


@dataclass(frozen=True, slots=True)
class Gain:
    """A relative reduction of the loss: log(loss without the adaptation / loss with it)."""

    value: float
    noise: float | None = None
    """Standard deviation of one window about the projected trend, in log loss; None without a projection."""
    near: float | None = None
    """Change of the log held-out loss some 300 steps after the adaptation; None: the value stands for it."""
    half_width: float | None = None
    """Half of the 90 % interval of the value, in log loss; None where the estimator has none."""

    @property
    def confidence(self) -> float:
        """How far the value can be trusted, in (0, 1]."""
        if self.half_width is not None:
            return 1.0 / (1.0 + self.half_width / WIDTH_AT_HALF_CONFIDENCE)
        if self.noise is None:
            return UNPROJECTED_CONFIDENCE
        return 1.0 / (1.0 + self.noise / NOISE_AT_HALF_CONFIDENCE)


def combine(projected: Gain | None, counterfactual: Gain | None) -> Gain | None:
    """Return the gain to credit for a span, given its two measurements.

    - Both are known: the smaller one, with the projection's noise. Drift cannot mislead the projection but a
      coincidence can; a coincidence cannot mislead the counterfactual, but a kernel that the network merely depends on
      can. One exception: if gating the kernels off raises the loss (counterfactual above 0), the result is at least
      0, because a loss above the projection then means that the projection was too optimistic.
    - Only one is known: that one.
    - Neither is known: None. The span stays unseen, which is not a gain of 0.
    """
    if projected is None:
        return counterfactual
    if counterfactual is None:
        return projected
    value = min(projected.value, counterfactual.value)
    if counterfactual.value > 0:
        value = max(0.0, value)
    return Gain(value, projected.noise)
