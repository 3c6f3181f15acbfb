"""The flat list of actions: entry 0 is no_op, then every kind of action at every layer."""

from collections.abc import Sequence

from tamiyo.schemas.adaptation import Action, DecisionType
from tamiyo.schemas.errors import PolicyError

_LOAD = f"{DecisionType.LOAD_KERNEL}:"


def kinds(blueprints: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of action at one layer, in order: a load of each blueprint, then unload, fossilize, optimize.

    Args:
        blueprints: Names of the blueprints that the policy can load, in its order.

    Example:
        >>> kinds(["low_rank"])
        ('load_kernel:low_rank', 'unload_kernel', 'fossilize_kernel', 'optimize_parameters')
    """
    return (
        *(_LOAD + blueprint for blueprint in blueprints),
        str(DecisionType.UNLOAD_KERNEL),
        str(DecisionType.FOSSILIZE_KERNEL),
        str(DecisionType.OPTIMIZE_PARAMETERS),
    )


def size(nodes: int, kinds: Sequence[str]) -> int:
    """Return the length of the list.

    Args:
        nodes: Layers of the graph.
        kinds: Kinds of action at one layer.
    """
    return 1 + nodes * len(kinds)


def blueprint_of(kind: str) -> str | None:
    """Return the blueprint that a kind of action loads.

    Args:
        kind: One of `kinds`.

    Returns:
        The blueprint's name; None if the action loads nothing.
    """
    return kind.removeprefix(_LOAD) if kind.startswith(_LOAD) else None


def to_action(index: int, layers: Sequence[str], kinds: Sequence[str]) -> Action:
    """Return one entry of the list as an action.

    Args:
        index: Position in the list, from 0.
        layers: The graph's layer ids, in its order.
        kinds: Kinds of action at one layer.

    Raises:
        PolicyError: The list is shorter.

    Example:
        >>> to_action(1, ["conv"], kinds(["low_rank"])).blueprint
        'low_rank'
    """
    if not 0 <= index < size(len(layers), kinds):
        raise PolicyError(f"expected an action below {size(len(layers), kinds)}, the length of the list, got {index}")
    if index == 0:
        return Action(type=DecisionType.NO_OP)
    node, position = divmod(index - 1, len(kinds))
    kind = kinds[position]
    blueprint = blueprint_of(kind)
    if blueprint is None:
        return Action(type=kind, layer_id=layers[node])
    return Action(type=DecisionType.LOAD_KERNEL, layer_id=layers[node], blueprint=blueprint)


def to_index(action: Action, layers: Sequence[str], kinds: Sequence[str]) -> int:
    """Return the position of an action in the list.

    Args:
        action: The action.
        layers: The graph's layer ids, in its order.
        kinds: Kinds of action at one layer.

    Raises:
        PolicyError: The list has no such type, layer or blueprint.
    """
    if action.type == DecisionType.NO_OP:
        return 0
    kind = _LOAD + (action.blueprint or "") if action.type == DecisionType.LOAD_KERNEL else action.type
    if kind not in kinds:
        raise PolicyError(f"expected one of the kinds of action {', '.join(kinds)}, got {kind!r}")
    if action.layer_id not in layers:
        raise PolicyError(f"expected a layer of this graph, got {action.layer_id!r}")
    return 1 + layers.index(action.layer_id) * len(kinds) + kinds.index(kind)
