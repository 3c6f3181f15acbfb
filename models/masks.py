"""Which actions are legal: illegal ones are masked before sampling, never corrected after."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tamiyo.models.actions import blueprint_of, size
from tamiyo.models.features import node_column
from tamiyo.schemas.adaptation import DecisionType
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
    than no_op, None where there was none. Raises PolicyError for another feature catalogue's graph.
    """
    mask = np.zeros(size(len(graph.layer_id), kinds), dtype=np.bool_)
    mask[0] = True
    if paused or cooling_down(graph, limits, steps_since_decision):
        return mask
    active = np.array(graph.active_seeds) > 0
    rules = {
        DecisionType.UNLOAD_KERNEL: active,
        # The sign of a contribution survives its scaling.
        DecisionType.FOSSILIZE_KERNEL: active & (node_column(graph, "contribution") > 0),
        # Halving must not lead below the floor; half a percent absorbs the rounding of a learning rate.
        DecisionType.OPTIMIZE_PARAMETERS: np.array(graph.learning_rate_scale) >= 2 * limits.learning_rate_floor * 0.995,
    }
    table = mask[1:].reshape(len(graph.layer_id), len(kinds))
    blueprints = {}
    for position, kind in enumerate(kinds):
        blueprint = blueprint_of(kind)
        if blueprint is not None:
            blueprints[blueprint] = position
        elif kind in rules:
            table[:, position] = rules[DecisionType(kind)]
    # A kernel fits where it is offered, a seed is free, and the parameter budget has room for it.
    left = graph.parameter_budget - (graph.parameters - graph.base_parameters)
    for node, (free, offers) in enumerate(zip(graph.dormant_seeds, graph.offers, strict=True)):
        for offer in offers if free > 0 else ():
            if offer.parameters <= left and offer.name in blueprints:
                table[node, blueprints[offer.name]] = True
    open_to_change = [
        not own and layer not in protected for layer, own in zip(graph.layer_id, graph.protected, strict=True)
    ]
    table &= np.array(open_to_change)[:, None]
    return mask


def cooling_down(graph: ModelGraph, limits: MaskLimits, steps_since_decision: int | None) -> bool:
    """Return whether the last adaptation, executed or decided, is too recent for another."""
    known = [steps for steps in (graph.steps_since_adaptation, steps_since_decision) if steps is not None]
    return bool(known) and min(known) < max(graph.cooldown_steps, limits.cooldown_steps)
