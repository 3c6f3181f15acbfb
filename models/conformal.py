"""Turns the ensemble's spread into a half-width that covers the reward as often as promised."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field


class Calibration(BaseModel):
    """Adaptive conformal calibration (Gibbs and Candes, 2021): half-width = multiplier x (spread + noise floor)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiplier: float = Field(1.0, gt=0, description="Of spread + noise_floor")
    coverage: float = Field(0.9, gt=0, lt=1, description="Share of rewards that must lie within the half-width")
    miss_rate: float = Field(0.1, ge=0, le=1, description="The level in force, which adapts")
    scores: tuple[float, ...] = Field((), description="Recent |reward - prediction| / (spread + noise_floor), oldest first")

    def half_width(self, spread: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return the calibrated half-width of each spread, in [0, 1]."""
        raise NotImplementedError

    def update(self, predicted: npt.ArrayLike, spread: npt.ArrayLike, reward: npt.ArrayLike) -> Calibration:
        """Return the calibration after these rewards came in, in order; self is unchanged.

        `predicted` and `spread` must be what the ensemble said before it was trained on `reward`.
        """
        raise NotImplementedError
