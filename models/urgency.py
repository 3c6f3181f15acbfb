"""How soon a layer needs attention, from its health, its trend and its neighbours."""

from tamiyo.schemas.analysis import ModelGraph


def urgency(graph: ModelGraph, layer_id: str | None) -> float:
    """Return the urgency at a layer, in [0, 1]; for None (no_op) that of the layer that needs it most."""
    raise NotImplementedError
