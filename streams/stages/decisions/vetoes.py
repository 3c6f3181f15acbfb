"""What forbids any adaptation at a graph, whatever the policy would choose."""

from tamiyo.models.masks import MaskLimits, cooling_down
from tamiyo.schemas.adaptation import Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.decisions.history import INTERVAL, History
from tamiyo.streams.stages.decisions.orders import StandingOrders


def blocking_vetoes(
    graph: ModelGraph, orders: StandingOrders, history: History, settings: DecisionSettings, masks: MaskLimits
) -> list[Veto]:
    """Return every reason why only no_op is legal at `graph`; an empty list means that an adaptation may be sampled.

    Args:
        graph: The graph to decide on.
        orders: The standing orders for its run.
        history: The run's latest adaptations.
        settings: Interval, rate and waiting time, in windows and steps.
        masks: This installation's cooldown, besides the run's own.
    """
    # The reasons are part of the decision, which a replay must repeat byte for byte: do not reword them.
    found: list[Veto] = []
    if orders.paused:
        found.append(Veto(by="control", reason=f"the run is paused: {orders.reason or 'by an operator'}"))
    if graph.final:
        found.append(Veto(by="run", reason="the run is over"))
    if not history.due(settings.decision_interval):
        found.append(Veto(by=INTERVAL, reason=f"only every {settings.decision_interval}th window brings a decision"))
    least = settings.min_signals_for_decision
    if graph.signals < least:
        found.append(Veto(by="signals", reason=f"{graph.signals} signals are fewer than the {least} needed"))
    in_flight = history.in_flight(graph, settings.in_flight_steps)
    if in_flight is not None:
        reason = f"what was decided at step {in_flight.step} is not yet carried out"
        found.append(Veto(by="in_flight", reason=reason))
    elif cooling_down(graph, masks, history.steps_since(graph)):
        found.append(Veto(by="cooldown", reason="the last adaptation is too recent"))
    if history.recent(graph, settings.rate_steps) >= settings.max_adaptations:
        reason = f"{settings.max_adaptations} adaptations within {settings.rate_steps} steps"
        found.append(Veto(by="rate", reason=reason))
    return found
