"""The safety monitor: checks, independently of how a decision was sampled, whether it may be executed."""

from __future__ import annotations

import math
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, Field

from tamiyo.models.actions import kinds, to_index
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.schemas.adaptation import Action, DecisionType, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

MONITOR = "safety_monitor"
UNCERTAINTY = "uncertainty"
TYPES = frozenset(str(member) for member in DecisionType)


class SafetyLimits(BaseModel):
    """Limits that no decision may exceed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_decision_uncertainty: float = Field(
        0.8, ge=0, le=1, description="Uncertainty above which only no_op is executed"
    )
    max_adaptations: int = Field(20, ge=0, description="Most adaptations of a run within rate_steps")
    rate_steps: int = Field(1000, ge=1, description="Range of training, in steps, over which adaptations are counted")
    masks: MaskLimits = MaskLimits()


class SafetyMonitor:
    """Checks decisions against the limits. Stateless: the caller passes the run's recent past.

    Example:
        >>> monitor = SafetyMonitor(protected=["layer.0"])
        >>> action = Action(type="optimize_parameters", layer_id="layer.0")
        >>> [veto.reason for veto in monitor.validate(action, confidence=0.9, graph=graph)]
        ['layer layer.0 is protected']
    """

    def __init__(self, limits: SafetyLimits | None = None, *, protected: Collection[str] = ()) -> None:
        """Make a monitor.

        Args:
            limits: Limits of this installation.
            protected: Layers that must not be adapted in any run.
        """
        self.limits = limits or SafetyLimits()
        self.protected = frozenset(protected)

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
        """Return every reason not to execute an action.

        no_op always passes. High confidence overrides no other check. Without a graph, only no_op passes.

        Args:
            action: The sampled action.
            confidence: 1 - uncertainty of its reward, in [0, 1].
            graph: The graph that the decision is about.
            paused: Whether the run is paused.
            protected: Layers protected by a standing order, in addition to the run's own and the monitor's.
            steps_since_decision: Steps since the run's last decision other than no_op; None if there was none.
            recent_adaptations: The run's decisions other than no_op that were not vetoed, within `limits.rate_steps`
                before the graph's step.

        Returns:
            The vetoes; an empty list means that the action may be executed.
        """
        if action.type == DecisionType.NO_OP:
            return []
        guarded = self.protected | frozenset(protected)
        reasons: list[str] = []
        if action.type not in TYPES:
            reasons.append(f"{action.type} is not a type of adaptation: expected one of {', '.join(sorted(TYPES))}")
        if action.layer_id is None:
            reasons.append(f"{action.type} names no layer")
        elif action.layer_id in guarded or (graph is not None and _own_protection(graph, action.layer_id)):
            reasons.append(f"layer {action.layer_id} is protected")
        if action.type == DecisionType.LOAD_KERNEL and action.blueprint is None:
            reasons.append("load_kernel names no blueprint")
        if graph is None:
            reasons.append("there is no graph to check the adaptation against")
        elif action.layer_id is not None and action.layer_id not in graph.layer_id:
            reasons.append(f"layer {action.layer_id} is not in graph {graph.graph_id}")
        elif not reasons:
            reasons += self._illegal(action, graph, paused, steps_since_decision)
        if recent_adaptations >= self.limits.max_adaptations:
            spent = f"{recent_adaptations} adaptations within {self.limits.rate_steps} steps"
            reasons.append(f"{spent}: the run's rate budget is spent")
        vetoes = [Veto(by=MONITOR, reason=reason[:2000]) for reason in reasons]
        uncertainty = 1.0 - confidence
        if math.isnan(uncertainty) or uncertainty > self.limits.max_decision_uncertainty:
            limit = self.limits.max_decision_uncertainty
            vetoes.append(Veto(by=UNCERTAINTY, reason=f"uncertainty {uncertainty:.3f} is above {limit:.3f}"))
        return vetoes

    def _illegal(self, action: Action, graph: ModelGraph, paused: bool, steps_since_decision: int | None) -> list[str]:
        """Return why the masks forbid this action; empty if they allow it."""
        names = kinds([] if action.blueprint is None else [action.blueprint])
        mask = legal_actions(
            graph, names, limits=self.limits.masks, paused=paused, steps_since_decision=steps_since_decision
        )
        try:
            index = to_index(action, graph.layer_id, names)
        except PolicyError as error:
            return [str(error)]
        if mask[index]:
            return []
        if paused:
            return ["the run is paused"]
        what = f"{action.type} of {action.blueprint}" if action.blueprint else action.type
        return [f"{what} at layer {action.layer_id} is not legal in graph {graph.graph_id}: seeds, budget or cooldown"]


def _own_protection(graph: ModelGraph, layer_id: str) -> bool:
    """Return whether the run's own topology protects the layer."""
    return layer_id in graph.layer_id and graph.protected[graph.layer_id.index(layer_id)]
