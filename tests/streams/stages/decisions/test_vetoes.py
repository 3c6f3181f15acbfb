"""What forbids any adaptation. The reasons are part of the decision: a replay must repeat them byte for byte."""

from typing import Any

from tamiyo.models.masks import MaskLimits
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.decisions.history import Adaptation, History
from tamiyo.streams.stages.decisions.orders import StandingOrders
from tamiyo.streams.stages.decisions.vetoes import blocking_vetoes
from tests.streams.stages.decisions.bench import graph

AT = graph(5)  # step 290


def vetoes(
    at: ModelGraph = AT,
    *,
    orders: StandingOrders | None = None,
    history: History | None = None,
    masks: MaskLimits | None = None,
    **settings: Any,
) -> dict[str, str]:
    found = blocking_vetoes(
        at, orders or StandingOrders(), history or History(), DecisionSettings(**settings), masks or MaskLimits()
    )
    return {veto.by: veto.reason for veto in found}


def adapted(*steps: int, refused: bool = False) -> History:
    return History([Adaptation(f"decision-{step}", step, 0, refused=refused) for step in steps])


def test_nothing_forbids_an_adaptation_by_default() -> None:
    assert vetoes() == {}


def test_a_pause() -> None:
    assert vetoes(orders=StandingOrders(paused=True)) == {"control": "the run is paused: by an operator"}
    assert vetoes(orders=StandingOrders(paused=True, reason="audit")) == {"control": "the run is paused: audit"}
    assert vetoes(orders=StandingOrders(dry_run=True)) == {}


def test_the_end_of_the_run() -> None:
    assert vetoes(graph(5, final=True)) == {"run": "the run is over"}


def test_windows_between_two_that_are_due() -> None:
    reason = "only every 3th window brings a decision"
    assert vetoes(history=History(since_considered=1), decision_interval=3) == {"interval": reason}
    assert vetoes(history=History(since_considered=2), decision_interval=3) == {}


def test_too_few_signals() -> None:
    reason = "2 signals are fewer than the 3 needed"
    assert vetoes(graph(5, signals=2), min_signals_for_decision=3) == {"signals": reason}
    assert vetoes(graph(5, signals=3), min_signals_for_decision=3) == {}


def test_an_adaptation_in_flight_comes_before_the_cooldown() -> None:
    reason = "what was decided at step 240 is not yet carried out"
    masks = MaskLimits(cooldown_steps=51)
    assert vetoes(history=adapted(240), masks=masks, in_flight_steps=51) == {"in_flight": reason}
    cooldown = {"cooldown": "the last adaptation is too recent"}
    assert vetoes(history=adapted(240), masks=masks, in_flight_steps=50) == cooldown
    assert vetoes(history=adapted(240), masks=MaskLimits(cooldown_steps=50), in_flight_steps=50) == {}


def test_the_rate_of_adaptations() -> None:
    limits = {"max_adaptations": 2, "rate_steps": 200, "in_flight_steps": 0}
    assert vetoes(history=adapted(100, 240), **limits) == {"rate": "2 adaptations within 200 steps"}
    assert vetoes(history=adapted(90, 240), **limits) == {}
    assert vetoes(history=adapted(100, 240, refused=True), **limits) == {}


def test_every_reason_is_named() -> None:
    found = vetoes(
        graph(5, final=True, signals=0),
        orders=StandingOrders(paused=True),
        history=History([Adaptation("decision", 240, 0)], since_considered=0),
        decision_interval=2,
        max_adaptations=0,
    )
    assert list(found) == ["control", "run", "interval", "signals", "in_flight", "rate"]
