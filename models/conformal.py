"""Calibrates the ensemble's spread: a half-width that covers the reward as often as promised."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

NOISE_FLOOR = 0.1
"""Added to every spread, in units of reward: rewards are noisy even where all heads agree."""
STEP_SIZE = 0.02  # change of the miss rate per reward: it adapts within about 50 rewards
KEPT = 500  # scores: older ones belong to earlier policies
LEAST = 20  # scores that a quantile needs to mean anything
# An action never tried has spread 0.25, so an uncertainty of at most 0.79: below the default veto limit of 0.8.
MULTIPLIERS = (0.3, 2.25)
MISS_RATES = (0.01, 0.5)


class Calibration(BaseModel):
    """Adaptive conformal calibration: half-width = multiplier x (spread + NOISE_FLOOR).

    The multiplier is the conformal quantile, at level 1 - miss rate, of the recent scores
    |reward - prediction| / (spread + NOISE_FLOOR). The miss rate follows Gibbs and Candes, "Adaptive conformal
    inference under distribution shift" (2021): it rises by STEP_SIZE x (1 - coverage - miss) after each reward, where
    miss is 1 for a reward outside the half-width.

    Example:
        >>> calibration = Calibration()
        >>> calibration.half_width([0.0, 0.2]).round(2).tolist()
        [0.10000000149011612, 0.30000001192092896]
        >>> calibration.update(predicted=[0.0], spread=[0.0], reward=[0.9]).miss_rate < calibration.miss_rate
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiplier: float = Field(1.0, gt=0, description="Of spread + NOISE_FLOOR")
    coverage: float = Field(0.9, gt=0, lt=1, description="Share of rewards that must lie within the half-width")
    miss_rate: float = Field(0.1, ge=0, le=1, description="Miss rate that the multiplier aims at; adapts")
    scores: tuple[float, ...] = Field(
        (), max_length=KEPT, description="Recent |reward - prediction| / (spread + NOISE_FLOOR), oldest first"
    )

    def half_width(self, spread: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the calibrated half-width of each spread.

        Args:
            spread: Standard deviation over the reward heads, >= 0, any shape.

        Returns:
            Float32 in [0, 1], the same shape.
        """
        width = self.multiplier * (np.asarray(spread, dtype=np.float64) + NOISE_FLOOR)
        return np.clip(width, 0.0, 1.0).astype(np.float32)

    def update(self, predicted: npt.ArrayLike, spread: npt.ArrayLike, reward: npt.ArrayLike) -> Calibration:
        """Return the calibration after some more rewards; self stays as it is.

        Args:
            predicted: The ensemble's means, [rewards], from before it was trained on these rewards.
            spread: Its standard deviations from the same time, [rewards].
            reward: The rewards in order of arrival, [rewards]. Entries that are not finite are ignored.
        """
        error = np.abs(np.asarray(reward, dtype=np.float64) - np.asarray(predicted, dtype=np.float64))
        scores = np.atleast_1d(error / (np.asarray(spread, dtype=np.float64) + NOISE_FLOOR))
        multiplier, miss_rate, kept = self.multiplier, self.miss_rate, list(self.scores)
        for score in scores[np.isfinite(scores)].tolist():
            miss_rate += STEP_SIZE * ((1.0 - self.coverage) - float(score > multiplier))
            miss_rate = min(max(miss_rate, MISS_RATES[0]), MISS_RATES[1])
            kept = [*kept[-(KEPT - 1) :], score]
            if len(kept) >= LEAST:
                multiplier = min(max(_quantile(kept, 1.0 - miss_rate), MULTIPLIERS[0]), MULTIPLIERS[1])
        return self.model_copy(update={"multiplier": multiplier, "miss_rate": miss_rate, "scores": tuple(kept)})


def _quantile(scores: list[float], level: float) -> float:
    """Return the conformal quantile: the ceil((n + 1) level)-th smallest of n, at most the largest."""
    rank = min(math.ceil((len(scores) + 1) * level), len(scores))
    return sorted(scores)[rank - 1]
