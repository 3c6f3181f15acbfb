"""Turns the ensemble's spread into a half-width that covers the reward as often as promised."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

NOISE_FLOOR = 0.1
"""Added to every spread: rewards have noise that heads agree about, and a spread of 0 is no certainty."""
STEP_SIZE = 0.02  # of the miss rate, an observation: adapts within some 50 rewards
KEPT = 500  # scores: older ones were another policy's
LEAST = 20  # scores below which a quantile means nothing
# An action never tried has spread .25, so at most .79 uncertainty: it stays below the veto's default of .8.
MULTIPLIERS = (0.3, 2.25)
MISS_RATES = (0.01, 0.5)


class Calibration(BaseModel):
    """Adaptive conformal calibration (Gibbs and Candes, 2021): half-width = multiplier x (spread + NOISE_FLOOR)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiplier: float = Field(1.0, gt=0, description="Of spread + NOISE_FLOOR")
    coverage: float = Field(0.9, gt=0, lt=1, description="Share of rewards that must lie within the half-width")
    miss_rate: float = Field(0.1, ge=0, le=1, description="The level in force, which adapts")
    scores: tuple[float, ...] = Field(
        (), max_length=KEPT, description="Recent |reward - prediction| / (spread + NOISE_FLOOR), oldest first"
    )

    def half_width(self, spread: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the calibrated half-width of each spread, in [0, 1]."""
        width = self.multiplier * (np.asarray(spread, dtype=np.float64) + NOISE_FLOOR)
        return np.clip(width, 0.0, 1.0).astype(np.float32)

    def update(self, predicted: npt.ArrayLike, spread: npt.ArrayLike, reward: npt.ArrayLike) -> Calibration:
        """Return the calibration after these rewards came in, in order; self is unchanged.

        `predicted` and `spread` must be what the ensemble said before it was trained on `reward`. Entries that are
        not finite are left out.
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
    """The conformal quantile: the ceil((n + 1) level)-th smallest of n, the largest where that is beyond them."""
    rank = min(math.ceil((len(scores) + 1) * level), len(scores))
    return sorted(scores)[rank - 1]
