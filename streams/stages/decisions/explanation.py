"""Explain a decision in an engineer's note of one or two sentences."""

from collections.abc import Iterator, Sequence

from tamiyo.models.behaviour import Choice
from tamiyo.schemas.adaptation import Action, DecisionType, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.stages.action_text import MAX_LENGTH, imperative


def explain_decision(
    action: Action,
    graph: ModelGraph,
    choice: Choice,
    *,
    legal_actions: int,
    policy_version: int,
    vetoes: Sequence[Veto],
    blocking_vetoes: Sequence[Veto],
    dry_run: bool,
) -> str:
    """Return what was decided, how, and whether it is executed.

    Args:
        action: The action sampled.
        graph: The graph it was sampled for.
        choice: Probability, expected reward and uncertainty of the action.
        legal_actions: How many actions it was sampled from.
        policy_version: Version of the policy.
        vetoes: Why the action is not executed.
        blocking_vetoes: Why only no_op was legal.
        dry_run: Whether decisions are recorded only.
    """
    if blocking_vetoes:
        return f"Step {graph.step}: no adaptation allowed; {_reasons(blocking_vetoes)}."[:MAX_LENGTH]
    policy = f"policy {policy_version}"
    chosen_by = policy if choice.method == "policy" else f"heuristic as {policy} is uncertain"
    probability = float(choice.probabilities[choice.index])
    text = (
        f"Step {graph.step}: {imperative(action)} (probability {probability:.2f} of {_count(legal_actions)}, "
        f"{chosen_by}, expected reward {choice.predicted_reward:+.2f} +/- {choice.uncertainty:.2f})"
    )
    state = ", ".join(_state(action, graph))
    text += f"; {state}." if state else "."
    if vetoes:
        text += f" Not executed: {_reasons(vetoes)}."
    elif dry_run and action.type != DecisionType.NO_OP:
        text += " Not executed: dry run."
    return text[:MAX_LENGTH]


def _count(legal_actions: int) -> str:
    return f"{legal_actions:,} legal action{'s' if legal_actions != 1 else ''}"


def _reasons(vetoes: Sequence[Veto]) -> str:
    return "; ".join(f"{veto.reason} ({veto.by})" for veto in vetoes)


def _state(action: Action, graph: ModelGraph) -> Iterator[str]:
    """Yield the loss of the network, the health of the layer, and the size of the kernel."""
    loss = graph.model_metrics.get("validation_loss", graph.model_metrics.get("train_loss"))
    if loss is not None:
        yield f"loss {loss:.3f}"
    if action.layer_id not in graph.layer_id:
        return
    node = graph.layer_id.index(action.layer_id)
    yield f"health {graph.health[node]:.2f}"
    if action.layer_id in graph.problematic:
        yield "problematic layer"
    for offer in graph.offers[node]:
        if action.type == DecisionType.LOAD_KERNEL and offer.name == action.blueprint:
            yield f"{offer.parameters:,} more parameters"
