"""Which actions are legal: illegal ones are masked before sampling, never corrected after."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tamiyo.schemas.analysis import ModelGraph


class MaskLimits(BaseModel):
    """Limits of this installation, beside those that a run's topology brings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cooldown_steps: int = Field(0, ge=0, description="Least steps between two adaptations of a run")
    learning_rate_floor: float = Field(1 / 16, gt=0, le=1, description="optimize_parameters goes no lower")


def legal_actions(
    graph: ModelGraph,
    kinds: Sequence[str],
    *,
    limits: MaskLimits,
    paused: bool = False,
    protected: Collection[str] = (),
    steps_since_decision: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Return True for every legal action of the flat list, [1 + nodes * kinds]; entry 0 (no_op) always is.

    `protected` are layers beside the run's own; `steps_since_decision` counts from the run's last decision other
    than no_op, None where there was none.
    """
    raise NotImplementedError
