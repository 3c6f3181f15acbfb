"""The safety monitor: asks again, independently of how a decision was sampled, whether it may be executed."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, Field

from tamiyo.models.masks import MaskLimits
from tamiyo.schemas.adaptation import Action, Veto
from tamiyo.schemas.analysis import ModelGraph


class SafetyLimits(BaseModel):
    """What no decision may exceed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_decision_uncertainty: float = Field(0.8, ge=0, le=1, description="Above it only no_op is executed")
    max_adaptations: int = Field(20, ge=0, description="Adaptations of a run within rate_steps")
    rate_steps: int = Field(1000, ge=1, description="Stretch of training in which max_adaptations are counted, steps")
    masks: MaskLimits = MaskLimits()


class SafetyMonitor:
    """Stateless: what it needs to know of the past, the caller tells."""

    def __init__(self, limits: SafetyLimits | None = None, *, protected: Collection[str] = ()) -> None:
        """`protected` are layers that no run may have adapted, whatever its topology says."""

    def validate(
        self,
        action: Action,
        confidence: float,
        graph: ModelGraph | None = None,
        *,
        paused: bool = False,
        protected: Collection[str] = (),
        steps_since_decision: int | None = None,
        recent_adaptations: int = 0,
    ) -> list[Veto]:
        """Return every reason not to execute `action`; an empty list means it may be.

        `recent_adaptations` counts the run's decisions other than no_op that were not vetoed, within
        `limits.rate_steps` before the graph's step. no_op is never refused.
        """
        raise NotImplementedError
