"""The four time spans over which an adaptation is rewarded, with the specification's weights."""

from collections.abc import Sequence
from dataclasses import dataclass

SPAN_WEIGHTS = {"immediate": 0.3, "short_term": 0.4, "medium_term": 0.25, "long_term": 0.05}


@dataclass(frozen=True, slots=True)
class Span:
    """A range of the run's clock relative to the moment an adaptation took effect: [start, end)."""

    name: str
    weight: float
    start: float
    end: float

    def contains(self, elapsed: float) -> bool:
        """Return whether `elapsed` clock units after the adaptation lie in the span."""
        return self.start <= elapsed < self.end


def make_spans(ends: Sequence[float]) -> tuple[Span, ...]:
    """Return the four spans.

    Args:
        ends: End of each span in the clock's unit (steps or milliseconds), increasing.
    """
    starts = (0.0, *ends[:-1])
    rows = zip(SPAN_WEIGHTS.items(), starts, ends, strict=True)
    return tuple(Span(name, weight, start, end) for (name, weight), start, end in rows)
