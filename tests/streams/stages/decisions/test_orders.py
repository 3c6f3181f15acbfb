from typing import Any

from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.streams.stages.decisions.orders import ControlOrders, StandingOrders
from tests.support.factories import make_graph
from tests.support.stage_log import FixedView


def command(run_id: str, time_ms: int, **fields: Any) -> ControlCommand:
    return ControlCommand(run_id=run_id, time_ms=time_ms, **fields)


def test_what_any_command_forbids_is_forbidden() -> None:
    orders = StandingOrders.of(
        [
            command("*", 10, paused=True, reason="audit", protected_layers=["a"]),
            command("run-1", 20, dry_run=True, reason="trial", protected_layers=["b"]),
        ]
    )
    assert orders == StandingOrders(
        paused=True,
        dry_run=True,
        protected=frozenset({"a", "b"}),
        reason="audit",
        given_ms={"*": 10, "run-1": 20},
    )


def test_without_commands_nothing_is_forbidden() -> None:
    assert StandingOrders.of([]) == StandingOrders(False, False, frozenset(), "", {})


def test_the_reasons_of_all_pauses_are_kept_within_their_bound() -> None:
    pauses = [command("*", 10, paused=True, reason="audit"), command("run-1", 20, paused=True, reason="x" * 600)]
    assert StandingOrders.of(pauses).reason == ("audit; " + "x" * 600)[:500]


def test_the_orders_of_a_run_are_its_own_and_those_for_all_runs() -> None:
    view = FixedView({"*": command("*", 10), "run-1": command("run-1", 20), "run-2": command("run-2", 30, paused=True)})
    orders = ControlOrders(view).orders(make_graph(1))  # of run-1
    assert orders == StandingOrders(given_ms={"*": 10, "run-1": 20})
