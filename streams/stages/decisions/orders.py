"""An operator's standing orders on `tamiyo.control`: pause, dry run, protected layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from tamiyo.schemas.adaptation import ALL_RUNS, ControlCommand
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.stages.base import View

MAX_REASON = 500  # characters; the reason is repeated in every decision of a paused run


@dataclass(frozen=True, slots=True)
class StandingOrders:
    """The orders in force for one run: those for all runs and its own, combined."""

    paused: bool = False
    """Only no_op is legal."""
    dry_run: bool = False
    """Decisions are recorded and not executed."""
    protected: frozenset[str] = frozenset()
    """Layers that must not be adapted, in addition to those of the topology and of the settings."""
    reason: str = ""
    """Why the run is paused."""
    given_ms: Mapping[str, int] = field(default_factory=dict)
    """Addressee (a run_id, or *) to the order's time_ms: a replay finds the orders by these."""

    @classmethod
    def of(cls, commands: Iterable[ControlCommand]) -> Self:
        """Combine commands: what any of them forbids is forbidden."""
        given = list(commands)
        return cls(
            paused=any(command.paused for command in given),
            dry_run=any(command.dry_run for command in given),
            protected=frozenset(layer for command in given for layer in command.protected_layers),
            given_ms={command.run_id: command.time_ms for command in given},
            reason="; ".join(command.reason for command in given if command.paused and command.reason)[:MAX_REASON],
        )


class ControlOrders:
    """The orders in force now, from the view of `tamiyo.control`."""

    def __init__(self, control: View[ControlCommand]) -> None:
        """Read orders from `control`, the newest command per key."""
        self._control = control

    def orders(self, graph: ModelGraph) -> StandingOrders:
        """Return the orders for the graph's run."""
        commands = (self._control.get(ALL_RUNS), self._control.get(graph.run_id))
        return StandingOrders.of(command for command in commands if command is not None)
