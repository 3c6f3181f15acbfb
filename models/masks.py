"""Which actions are legal. Illegal actions are masked before sampling, never corrected afterwards."""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tamiyo.models.actions import blueprint_of, size
from tamiyo.models.features import node_column
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import ModelGraph


class MaskLimits(BaseModel):
    """Limits of this installation, in addition to those of a run's topology."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cooldown_steps: int = Field(0, ge=0, description="Fewest steps between two adaptations of a run")
    learning_rate_floor: float = Field(
        1 / 16,
        gt=0,
        le=1,
        description="Lowest learning rate of a layer / the optimiser's that optimize_parameters may set",
    )


def legal_actions(
    graph: ModelGraph,
    kinds: Sequence[str],
    *,
    limits: MaskLimits,
    paused: bool = False,
    protected: Collection[str] = (),
    steps_since_decision: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which actions of the flat list are legal.

    Args:
        graph: The graph to decide on.
        kinds: Kinds of action at one layer.
        limits: The installation's limits.
        paused: Whether only no_op is legal.
        protected: Layers that must not be adapted, in addition to the run's own.
        steps_since_decision: Steps since the run's last decision other than no_op; None if there was none.

    Returns:
        Bool [1 + nodes x kinds]; entry 0 (no_op) is always True.

    Raises:
        PolicyError: Another feature catalogue built the graph.

    Example:
        >>> from tamiyo.models.actions import kinds
        >>> int(legal_actions(graph, kinds(["low_rank"]), limits=MaskLimits(), paused=True).sum())
        1
    """
    mask = np.zeros(size(len(graph.layer_id), kinds), dtype=np.bool_)
    mask[0] = True
    if paused or cooling_down(graph, limits, steps_since_decision):
        return mask
    active = np.array(graph.active_seeds) > 0
    rules = {
        DecisionType.UNLOAD_KERNEL: active,
        # The scaled contribution keeps its sign.
        DecisionType.FOSSILIZE_KERNEL: active & (node_column(graph, "contribution") > 0),
        # Half of the rate must not lie below the floor; half a percent absorbs the rounding of a learning rate.
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
    # A kernel fits if the layer offers it, a seed is free and the parameter budget suffices.
    left = graph.parameter_budget - (graph.parameters - graph.base_parameters)
    for node, (free, offers) in enumerate(zip(graph.dormant_seeds, graph.offers, strict=True)):
        for offer in offers if free > 0 else ():
            if offer.parameters <= left and offer.name in blueprints:
                table[node, blueprints[offer.name]] = True
    adaptable = [not own and layer not in protected for layer, own in zip(graph.layer_id, graph.protected, strict=True)]
    table &= np.array(adaptable)[:, None]
    return mask


def cooling_down(graph: ModelGraph, limits: MaskLimits, steps_since_decision: int | None) -> bool:
    """Return whether the last adaptation, executed or decided, is too recent for another.

    Args:
        graph: The graph, with the host's cooldown and the steps since the last executed adaptation.
        limits: The installation's limits; the longer cooldown counts.
        steps_since_decision: Steps since the run's last decision other than no_op; None if there was none.
    """
    known = [steps for steps in (graph.steps_since_adaptation, steps_since_decision) if steps is not None]
    return bool(known) and min(known) < max(graph.cooldown_steps, limits.cooldown_steps)
