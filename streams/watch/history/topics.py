"""What each topic has had over time, and the stages that read it."""

import math
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.watch.history.timeline import Timeline

RATE_S = 10
COUNT_POINTS = 500
MAX_DEAD_LETTERS = 50


@dataclass(slots=True)
class TopicHistory:
    """One topic of the catalogue."""

    partitions: int | None = None
    records: int = 0
    """Records read."""
    in_log: int | None = None
    """Records in the log, as far as it is known."""
    oldest_ms: int | None = None
    newest_ms: int | None = None
    dead_letters: int = 0
    late: int = 0
    _next_point: int = 0
    _counts: Timeline = field(default_factory=lambda: Timeline({"count": "q"}, limit=COUNT_POINTS))
    _recent: deque[tuple[int, int]] = field(default_factory=deque)
    """(second, records read in it)."""

    def take(self, time_ms: int, second: int) -> None:
        """Count a record of a Kafka time, read in a second of the clock."""
        self.records += 1
        self.oldest_ms = time_ms if self.oldest_ms is None else min(self.oldest_ms, time_ms)
        self.newest_ms = time_ms if self.newest_ms is None else max(self.newest_ms, time_ms)
        # Fewer and fewer points, of one part in COUNT_POINTS each: counting is most of what reading costs.
        if self.records >= self._next_point:
            self._counts.add(self.records, self.newest_ms, 0, {"count": self.records})
            self._next_point = self.records + 1 + self.records // COUNT_POINTS
        if self._recent and self._recent[-1][0] == second:
            self._recent[-1] = (second, self._recent[-1][1] + 1)
        else:
            self._recent.append((second, 1))
            while self._recent[0][0] < second - RATE_S:
                self._recent.popleft()

    def rate(self, second: int) -> float:
        """Return the records read a second, over the last RATE_S whole seconds."""
        return sum(count for each, count in self._recent if second - RATE_S <= each < second) / RATE_S

    def until(self, at_ms: int | None) -> tuple[int, int | None]:
        """Return how many records there were up to a time, and the time of the newest of them, about."""
        if at_ms is None or self.newest_ms is None or at_ms >= self.newest_ms:
            return self.records, self.newest_ms
        place = bisect_right(self._counts.times, at_ms)
        if place == 0:
            return 0, None
        return self._counts.columns["count"][place - 1], self._counts.times[place - 1]


class TopicsHistory:
    """All topics, their dead letters, and the state of the stages."""

    def __init__(self) -> None:
        """Know no record."""
        self.topics: dict[str, TopicHistory] = {topic.name: TopicHistory() for topic in CATALOGUE}
        self.dead_letters: deque[tuple[int, str, str, str]] = deque(maxlen=MAX_DEAD_LETTERS)
        """(Kafka time, topic, reason, key)."""
        self.stages: list[dict[str, Any]] = []
        self.signals = 0
        self.shed = 0
        self._shedding = Timeline({"signals": "q", "shed": "q"}, limit=COUNT_POINTS)
        self._newest_ms = 0

    def take_window(self, signals: int, shed: int, time_ms: int) -> None:
        """Count the layer-signals of a window."""
        self.signals += signals
        self.shed += shed
        self._newest_ms = max(self._newest_ms, time_ms)
        number = len(self._shedding.steps) and self._shedding.steps[-1]
        values = {"signals": self.signals, "shed": self.shed}
        self._shedding.add(number + 1, self._newest_ms, 0, values)

    def shedding(self, at_ms: int | None) -> tuple[int, int, float | None]:
        """Return the layer-signals in windows up to a time, those shed, and the share of these among all."""
        signals, shed = self.signals, self.shed
        if at_ms is not None and at_ms < self._newest_ms:
            place = self._shedding.until(at_ms)
            signals, shed = (self._shedding.columns[name][place - 1] if place else 0 for name in ("signals", "shed"))
        share = shed / (signals + shed) if signals + shed else math.nan
        return signals, shed, share if share == share else None

    def take_dead_letter(self, topic: str, reason: str, key: str, time_ms: int) -> None:
        """Count a dead letter, or a late message, and keep it among the newest."""
        source, _, kind = topic.rpartition(".")
        found = self.topics.get(source)
        if found is None:
            return
        if kind == "late":
            found.late += 1
        else:
            found.dead_letters += 1
        self.dead_letters.append((time_ms, topic, reason, key))
