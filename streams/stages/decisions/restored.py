"""Decisions published before a restart, whose graphs may be read again."""

from collections import OrderedDict
from collections.abc import Iterable

from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.topics import GRAPHS
from tamiyo.streams.stages.base import Incoming, PriorOutput

NEVER = 2**63  # above every offset: for a decision without its graph's offset, which may always be read again


class RestoredDecisions:
    """Decisions by id, in the order of their graphs, with the outcomes that were read again before the graph."""

    def __init__(self) -> None:
        self._decisions: OrderedDict[str, tuple[AdaptationDecision, int]] = OrderedDict()
        """With the offset of the graph."""
        self._outcomes: dict[str, Incoming] = {}

    def add(self, outputs: Iterable[PriorOutput]) -> None:
        """Take the stage's own outputs, oldest first; the first under an id counts."""
        for each in outputs:
            self._decisions.setdefault(each.record.decision_id, (each.record, each.sources.get(GRAPHS.name, NEVER)))

    def pop(self, decision_id: str) -> tuple[AdaptationDecision, Incoming | None] | None:
        """Remove and return a decision and its outcome, if that was read; None if the decision is not held."""
        found = self._decisions.pop(decision_id, None)
        return None if found is None else (found[0], self._outcomes.pop(decision_id, None))

    def hold_outcome(self, incoming: Incoming) -> bool:
        """Keep an outcome until the graph of its decision is read; return whether its decision is held."""
        held = incoming.record.decision_id in self._decisions
        if held:
            self._outcomes[incoming.record.decision_id] = incoming
        return held

    def drop_below(self, offset: int) -> None:
        """Drop the decisions on graphs below `offset`, which are not read again: a thousand take 7 MB and more."""
        while self._decisions:
            name, (_, graph_offset) = next(iter(self._decisions.items()))
            if graph_offset >= offset:
                break
            del self._decisions[name]
            self._outcomes.pop(name, None)

    def outcome_offsets(self) -> list[int]:
        """Return the offsets of the outcomes held."""
        return [each.offset for each in self._outcomes.values()]
