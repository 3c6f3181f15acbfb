"""Operators' standing orders over time."""

from collections import OrderedDict
from collections.abc import Mapping

from tamiyo.schemas.adaptation import ALL_RUNS, ControlCommand
from tamiyo.streams.stages.decisions.orders import StandingOrders

MAX_KEYS = 5_000
MAX_COMMANDS = 50  # of one run


class OrderHistory:
    """The commands for each run, and for all runs."""

    def __init__(self) -> None:
        """Know no order."""
        self._commands: OrderedDict[str, list[tuple[int, ControlCommand | None]]] = OrderedDict()

    def take(self, key: str, command: ControlCommand | None, time_ms: int) -> None:
        """Take the next command of a run, or the tombstone that removes it."""
        known = [*self._commands.get(key, []), (time_ms, command)]
        # Partitions may be added, so a key's commands can lie on two of them, which are read in any order.
        self._commands[key] = sorted(known, key=lambda each: each[0])[-MAX_COMMANDS:]
        while len(self._commands) > MAX_KEYS:
            self._commands.popitem(last=False)

    def command(self, key: str, at_ms: int | None = None) -> ControlCommand | None:
        """Return the command in force under a key at a time."""
        for time_ms, command in reversed(self._commands.get(key, [])):
            if at_ms is None or time_ms <= at_ms:
                return command
        return None

    def commands(self, at_ms: int | None = None) -> list[ControlCommand]:
        """Return all commands in force at a time."""
        found = (self.command(key, at_ms) for key in self._commands)
        return [command for command in found if command is not None]

    def issued(self, orders: Mapping[str, int]) -> StandingOrders:
        """Return what commands order together, each given by its key and its `time_ms`, as decisions record them."""
        return StandingOrders.of(
            command
            for key in orders
            for _, command in self._commands.get(key, [])
            if command is not None and command.time_ms == orders[key]
        )

    def standing(self, run_id: str, at_ms: int | None = None) -> tuple[StandingOrders, ControlCommand | None]:
        """Return a run's orders in force at a time, and the command that they come from, its own first."""
        if not self._commands:
            return StandingOrders(), None
        given = [each for each in (self.command(run_id, at_ms), self.command(ALL_RUNS, at_ms)) if each is not None]
        forbids = [each for each in given if each.paused or each.dry_run or each.protected_layers]
        return StandingOrders.of(given), forbids[0] if forbids else None
