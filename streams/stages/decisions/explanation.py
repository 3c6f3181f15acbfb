"""Explain a decision in one sentence."""

from collections.abc import Sequence

from tamiyo.schemas.adaptation import Action, DecisionType, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.stages.action_text import MAX_LENGTH, action_words


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
    blocking_vetoes: Sequence[Veto],
    dry_run: bool,
) -> str:
    """Explain a decision; `alternatives` counts the legal actions, `blocking_vetoes` say why only no_op is legal."""
    if blocking_vetoes:
        return f"Step {graph.step}: leave the network alone, since {_reasons(blocking_vetoes)}."[:MAX_LENGTH]
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
