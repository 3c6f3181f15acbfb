"""Why actions were masked, from what the history has of the run at the decision's step.

Where nothing was legal, the decision itself has the reasons: its vetoes. Otherwise it records only which actions were
masked. The rules are those of `models/masks.py`, in its order. Where the history's measurements do not explain a mask,
its reason is unknown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tamiyo.schemas.adaptation import AdaptationDecision, DecisionType
from tamiyo.streams.stages.decisions.orders import StandingOrders
from tamiyo.streams.watch.history.frames import MEASUREMENTS
from tamiyo.streams.watch.history.runs import RunHistory

Measured = Mapping[str, float]
NO_FRAME: Measured = dict.fromkeys(MEASUREMENTS, math.nan)


@dataclass(frozen=True, slots=True)
class MaskReasons:
    """Explains the masked actions of one decision."""

    everything: str | None
    """Why only no_op was legal; None: other actions were."""
    protected: frozenset[str]
    """Layers that must not be adapted."""
    measured: Mapping[str, Measured]
    """The newest measurements up to the decision's step, by layer and name."""
    offers: Mapping[str, Mapping[str, int]]
    """Parameters of each blueprint that fits, by layer and name."""
    left: float
    """Parameters that kernels may still add; NaN: unknown."""

    @classmethod
    def of(cls, found: RunHistory, record: AdaptationDecision, orders: StandingOrders) -> "MaskReasons":
        """Gather what explains a decision's masks.

        Args:
            found: The decision's run.
            record: The decision.
            orders: The operator's orders that it records.
        """
        topology = found.topology or {}
        own = {node["layer_id"] for node in topology.get("nodes", ()) if node["protected"]}
        layers, place = found.layers, found.layers.measured.before(record.step)
        frame = layers.frame(layers.measured, place) if place >= 0 else None
        measured = (
            {
                name: dict(zip(MEASUREMENTS, frame[:, number].tolist(), strict=True))
                for number, name in enumerate(layers.names)
            }
            if frame is not None
            else {}
        )
        points = found.points.before(record.step)
        added = (
            found.points.columns["parameters"][points] - found.points.columns["base_parameters"][points]
            if points >= 0
            else math.nan
        )
        return cls(
            everything="; ".join(veto.reason for veto in record.vetoes) or None if sum(record.mask) == 1 else None,
            protected=frozenset(own) | orders.protected,
            measured=measured,
            offers=topology.get("offers", {}),
            left=topology.get("parameter_budget", math.nan) - added,
        )

    def reason(self, action: Mapping[str, Any]) -> str | None:
        """Return why an action was masked; None where that is not known."""
        layer = action["layer_id"]
        if self.everything is not None or layer is None:
            return self.everything
        if layer in self.protected:
            return "the layer is protected"
        measured = self.measured.get(layer, NO_FRAME)
        match action["type"]:
            case DecisionType.LOAD_KERNEL:
                return self._load(layer, action["blueprint"], measured)
            case DecisionType.UNLOAD_KERNEL | DecisionType.FOSSILIZE_KERNEL if measured["active_seeds"] == 0:
                return "the layer has no active kernel"
            case DecisionType.FOSSILIZE_KERNEL if measured["active_seeds"] > 0 and not measured["contribution"] > 0:
                return "its kernel is not known to lower the loss"
            case DecisionType.OPTIMIZE_PARAMETERS if measured["learning_rate_scale"] < 1:
                return f"the layer learns at {measured['learning_rate_scale']:.3g} of the optimiser's rate already"
        return None

    def _load(self, layer: str, blueprint: str, measured: Measured) -> str | None:
        if layer in self.offers and blueprint not in self.offers[layer]:
            return "the blueprint does not fit the layer"
        if measured["dormant_seeds"] == 0:
            return "the layer has no free seed"
        needed = self.offers.get(layer, {}).get(blueprint, 0)
        if needed > self.left:
            return f"it needs {needed:,} parameters, and {max(0.0, self.left):,.0f} are left of the budget"
        return None
