"""The flat list of everything that can be done to a run: entry 0 is no_op, then every kind at every layer."""

from collections.abc import Sequence

from tamiyo.schemas.adaptation import Action, DecisionType
from tamiyo.schemas.errors import PolicyError

_LOAD = f"{DecisionType.LOAD_KERNEL}:"


def kinds(blueprints: Sequence[str]) -> tuple[str, ...]:
    """Return what can be done at one layer, in order: a load of each blueprint, then the other three."""
    return (
        *(_LOAD + blueprint for blueprint in blueprints),
        str(DecisionType.UNLOAD_KERNEL),
        str(DecisionType.FOSSILIZE_KERNEL),
        str(DecisionType.OPTIMIZE_PARAMETERS),
    )


def size(nodes: int, kinds: Sequence[str]) -> int:
    """Return the length of the list for a graph of `nodes` layers."""
    return 1 + nodes * len(kinds)


def blueprint_of(kind: str) -> str | None:
    """Return the blueprint that a kind loads, or None where it loads nothing."""
    return kind.removeprefix(_LOAD) if kind.startswith(_LOAD) else None


def to_action(index: int, layers: Sequence[str], kinds: Sequence[str]) -> Action:
    """Return entry `index` of the list. Raises PolicyError where the list is shorter."""
    if not 0 <= index < size(len(layers), kinds):
        raise PolicyError(f"action {index} is outside the list of {size(len(layers), kinds)} actions")
    if index == 0:
        return Action(type=DecisionType.NO_OP)
    node, position = divmod(index - 1, len(kinds))
    kind = kinds[position]
    blueprint = blueprint_of(kind)
    if blueprint is None:
        return Action(type=kind, layer_id=layers[node])
    return Action(type=DecisionType.LOAD_KERNEL, layer_id=layers[node], blueprint=blueprint)


def to_index(action: Action, layers: Sequence[str], kinds: Sequence[str]) -> int:
    """Return where `action` stands in the list. Raises PolicyError for a type, layer or blueprint not in it."""
    if action.type == DecisionType.NO_OP:
        return 0
    kind = _LOAD + (action.blueprint or "") if action.type == DecisionType.LOAD_KERNEL else action.type
    if kind not in kinds:
        raise PolicyError(f"{kind!r} is none of the kinds of action {', '.join(kinds)}")
    if action.layer_id not in layers:
        raise PolicyError(f"there is no layer {action.layer_id!r} in this graph")
    return 1 + layers.index(action.layer_id) * len(kinds) + kinds.index(kind)
