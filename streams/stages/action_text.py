"""The wording of an action, shared by the explanations of decisions and of rewards."""

from tamiyo.schemas.adaptation import Action, DecisionType

MAX_LENGTH = 2000  # characters that a record's text field may hold


def imperative(action: Action) -> str:
    """Return an action as an order, e.g. "load low_rank at layer features.0"."""
    verb, _, rest = _phrase(action)
    return f"{verb} {rest}"


def gerund(action: Action) -> str:
    """Return an action as a subject, e.g. "Loading low_rank at layer features.0"."""
    _, verb, rest = _phrase(action)
    return f"{verb} {rest}"


def _phrase(action: Action) -> tuple[str, str, str]:
    """Return the verb, its gerund, and what it applies to."""
    layer = f"layer {action.layer_id}"
    match action.type:
        case DecisionType.NO_OP:
            return "make", "Making", "no adaptation"
        case DecisionType.LOAD_KERNEL:
            return "load", "Loading", f"{action.blueprint} at {layer}"
        case DecisionType.UNLOAD_KERNEL:
            return "unload", "Unloading", f"a kernel at {layer}"
        case DecisionType.FOSSILIZE_KERNEL:
            return "make", "Making", f"a kernel at {layer} permanent"
        case DecisionType.OPTIMIZE_PARAMETERS:
            return "halve", "Halving", f"the learning rate of {layer}"
    return "apply", "Applying", f"{action.type} at {layer}"
