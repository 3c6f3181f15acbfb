"""The wording of an action, shared by the explanations of decisions and of rewards."""

from tamiyo.schemas.adaptation import Action, DecisionType

MAX_LENGTH = 2000  # characters that a record's text field may hold


def action_words(action: Action) -> str:
    """Return an action as a phrase, e.g. "load low_rank at features.0"."""
    match action.type:
        case DecisionType.NO_OP:
            return "leave the network alone"
        case DecisionType.LOAD_KERNEL:
            return f"load {action.blueprint} at {action.layer_id}"
        case DecisionType.UNLOAD_KERNEL:
            return f"unload a kernel of {action.layer_id}"
        case DecisionType.FOSSILIZE_KERNEL:
            return f"make a kernel of {action.layer_id} permanent"
        case DecisionType.OPTIMIZE_PARAMETERS:
            return f"halve the learning rate of {action.layer_id}"
    return f"{action.type} at {action.layer_id}"
