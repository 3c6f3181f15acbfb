"""An executed adaptation, as its reward sees it."""

import math
from dataclasses import dataclass
from typing import Self

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType
from tamiyo.schemas.analysis import ModelGraph


@dataclass(frozen=True, slots=True)
class ExecutedAdaptation:
    """What a reward depends on, apart from the run's windows."""

    effective_at: float
    """Clock value (step, or ms) at which it took effect."""
    layer_id: str | None
    gated: bool
    """Whether the host can gate it off and on, and so measures its contribution: True for loaded kernels."""
    parameters_added: int
    parameter_budget: int
    """Parameters by which the run may grow in all."""
    uncertainty: float
    """Of the policy's predicted reward, in 0..1."""
    next_adaptation_at: float = math.inf
    """Clock value of the run's next executed adaptation."""

    @classmethod
    def of(
        cls,
        decision: AdaptationDecision,
        graph: ModelGraph,
        outcome: AdaptationOutcome,
        *,
        effective_at: float,
        next_adaptation_at: float,
    ) -> Self:
        """Return the adaptation that `decision`, made on `graph`, became with `outcome`."""
        return cls(
            effective_at=effective_at,
            layer_id=decision.layer_id,
            gated=decision.type == DecisionType.LOAD_KERNEL,
            parameters_added=parameters_added(decision, graph, outcome),
            parameter_budget=graph.parameter_budget,
            uncertainty=decision.uncertainty,
            next_adaptation_at=next_adaptation_at,
        )


def parameters_added(decision: AdaptationDecision, graph: ModelGraph, outcome: AdaptationOutcome) -> int:
    """Return the change in parameters as the host measured it, else the size of the offered blueprint, else 0."""
    if "parameters" in outcome.before and "parameters" in outcome.after:
        return round(outcome.after["parameters"] - outcome.before["parameters"])
    if decision.type == DecisionType.LOAD_KERNEL and decision.layer_id in graph.layer_id:
        for offer in graph.offers[graph.layer_id.index(decision.layer_id)]:
            if offer.name == decision.blueprint:
                return offer.parameters
    return 0
