"""Sentences that tell a person what was decided, and what it was worth."""

from collections.abc import Mapping, Sequence

from tamiyo.schemas.adaptation import Action, DecisionType, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.learning import SpanReward
from tamiyo.streams import reward_components as rc

MAX_LENGTH = 2000  # what a record's text may hold

_WORDS = {
    rc.ACCURACY: "lower loss",
    rc.SPEED: "speed",
    rc.MEMORY: "parameters",
    rc.STABILITY: "stability",
    rc.COST: "cost",
    rc.RISK: "risk",
}


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


def explain_decision(
    action: Action,
    graph: ModelGraph,
    *,
    probability: float,
    alternatives: int,
    method: str,
    policy_version: int,
    predicted_reward: float,
    uncertainty: float,
    vetoes: Sequence[Veto],
    holds: Sequence[Veto],
    dry_run: bool,
) -> str:
    """Return why this was decided at this graph; `alternatives` counts the legal actions, `holds` why only no_op is."""
    if holds:
        return f"Step {graph.step}: leave the network alone, since {_reasons(holds)}."[:MAX_LENGTH]
    who = f"policy {policy_version}" if method == "policy" else "the heuristic (the policy is not sure yet)"
    text = (
        f"Step {graph.step}: {action_words(action)}, chosen by {who} with probability {probability:.2f} among "
        f"{alternatives} legal actions; expected reward {predicted_reward:+.2f} +/- {uncertainty:.2f}"
    )
    facts = _facts(action, graph)
    text += f"; {facts}." if facts else "."
    if vetoes:
        text += f" Not executed: {_reasons(vetoes)}."
    elif dry_run and action.type != DecisionType.NO_OP:
        text += " Not executed: dry run."
    return text[:MAX_LENGTH]


def _reasons(vetoes: Sequence[Veto]) -> str:
    return "; ".join(f"{veto.reason} ({veto.by})" for veto in vetoes)


def _facts(action: Action, graph: ModelGraph) -> str:
    facts = []
    loss = graph.model_metrics.get("validation_loss", graph.model_metrics.get("train_loss"))
    if loss is not None:
        facts.append(f"loss {loss:.3f}")
    if action.layer_id in graph.layer_id:
        node = graph.layer_id.index(action.layer_id)
        facts.append(f"health {graph.health[node]:.2f}")
        if action.layer_id in graph.problematic:
            facts.append("a problematic layer")
        for offer in graph.offers[node]:
            if action.type == DecisionType.LOAD_KERNEL and offer.name == action.blueprint:
                facts.append(f"{offer.parameters:,} parameters more")
    return ", ".join(facts)


def explain_reward(
    action: Action,
    status: str,
    *,
    reason: str,
    spans: Sequence[SpanReward],
    components: Mapping[str, float],
    total: float,
    confidence: float,
    improvement: float | None,
) -> str:
    """Return what a decision was worth, and why; `reason` is the host's or the veto's where it was not executed."""
    if status == "none":
        return "Doing nothing is the measure of everything else: worth exactly 0."
    what = action_words(action)
    if status == "dry_run":
        return f"To {what} was recorded only (dry run): what it would have been worth is unknown."
    if status != "executed":
        return f"To {what} was {status}: {reason or 'no reason was given'}; worth {total:+.2f}."[:MAX_LENGTH]
    seen = sum(span.seen for span in spans)
    if improvement is None:
        return f"To {what} was executed; no loss was measured after it yet, so what it is worth is unknown."
    direction = "lowered" if improvement >= 0 else "raised"
    parts = sorted(
        ((rc.WEIGHTS[name] * value, name) for name, value in components.items()), key=lambda part: -abs(part[0])
    )
    told = ", ".join(f"{_WORDS[name]} {value:+.2f}" for value, name in parts if abs(value) >= 0.005)
    return (
        f"To {what} {direction} the loss by {abs(improvement):.1%} against where the run was heading, over {seen} of "
        f"{len(spans)} spans (confidence {confidence:.0%}); worth {total:+.2f}: {told}."
    )[:MAX_LENGTH]
