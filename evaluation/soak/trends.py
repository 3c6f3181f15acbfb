"""Trends: a robust line through the second half of a series, and a verdict in words.

The line is Theil and Sen's: the median slope over all pairs of points, which up to 29 % of outliers do not move. Its
interval assumes independent points. If the points of a series are correlated, as those of a saw tooth are, the line is
fitted to the medians of blocks that are long enough to be independent. The verdict is growth only if the whole interval
lies above a tolerance, the growth that would not matter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scipy.stats import rankdata, theilslopes

HOUR_S = 3600.0
MIN_SPAN_S = 900.0  # of a series; a shorter one shows nothing about hours
WARM_S = 300.0  # of a process's life: imports, first batches, filling caches
CONFIDENCE = 0.95
MIN_BLOCKS = 6  # independent ones; with fewer, Theil and Sen's line has no interval of 95 %

Point = tuple[float, float]
"""Seconds since the beginning, and a value."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The growth an hour that does not matter."""

    unit: str
    absolute: float
    relative: float = 0.0
    """Share of the series' median; the larger of the two applies."""

    def of(self, values: Sequence[float]) -> float:
        """Return the tolerance in the series' unit per hour."""
        return max(self.absolute, self.relative * abs(median(values)))


TOLERANCES = {
    "rss_mb": Tolerance("MB", 2.0, 0.005),  # 500 MB in 10 days, within a container's limit
    "fds": Tolerance("handles", 1.0),
    "threads": Tolerance("threads", 0.5),
    "cores": Tolerance("cores", 0.01, 0.05),
    "lag": Tolerance("records", 20.0, 0.1),
    "latency_ms": Tolerance("ms", 5.0, 0.1),
}


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through a series."""

    verdict: str
    slope_per_hour: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    minutes: float = 0.0
    """Duration that it was fitted to."""
    points: int = 0
    stretches: int = 0
    """Number of independent blocks of points; the name is the report's."""

    @property
    def grows(self) -> bool:
        """Return whether the verdict is growth."""
        return self.verdict.startswith("grows")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return asdict(self)


def trend(points: Sequence[Point], tolerance: Tolerance) -> Trend:
    """Fit a line to all `points` and return it with its verdict."""
    span = points[-1][0] - points[0][0] if points else 0.0
    if span < MIN_SPAN_S or len(points) < 20:
        return Trend(
            f"not judged: {span / 60:.0f} minutes are too short", minutes=round(span / 60, 1), points=len(points)
        )
    allowed = tolerance.of([value for _, value in points])
    blocks = independent(points)
    if len(blocks) < MIN_BLOCKS:
        return Trend(
            f"not judged: only {len(blocks)} independent blocks of points",
            minutes=round(span / 60, 1), points=len(points), stretches=len(blocks),
        )  # fmt: skip
    line = _line(blocks)
    return Trend(
        verdict(line.slope, line.low_slope, line.high_slope, allowed, tolerance.unit),
        slope_per_hour=_rounded(line.slope),
        low=_rounded(line.low_slope),
        high=_rounded(line.high_slope),
        tolerance=_rounded(allowed),
        minutes=round(span / 60, 1),
        points=len(points),
        stretches=len(blocks),
    )


def independent(points: Sequence[Point]) -> list[Point]:
    """Return the medians of blocks of `points` that are long enough to scatter independently around a line.

    A block is as long as the integrated autocorrelation time of the residuals' ranks, after Geyer (1992): pairs of
    neighbouring autocorrelations are summed while they are positive.
    """
    line = _line(points)
    residuals = [value - line.intercept - line.slope * seconds / HOUR_S for seconds, value in points]
    ranks = rankdata(residuals) - (len(points) + 1) / 2
    power = float(ranks @ ranks)
    if power == 0:  # a line without noise
        return list(points)
    time = -1.0
    for lag in range(0, len(ranks) - 1, 2):
        pair = float(ranks[: len(ranks) - lag] @ ranks[lag:] + ranks[: len(ranks) - lag - 1] @ ranks[lag + 1 :]) / power
        if pair <= 0:
            break
        time += 2 * pair
    size = max(1, round(time))
    parts = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(median(seconds for seconds, _ in part), median(value for _, value in part)) for part in parts]


def _line(points: Sequence[Point]) -> Any:
    return theilslopes([value for _, value in points], [seconds / HOUR_S for seconds, _ in points], CONFIDENCE)


def verdict(slope: float, low: float, high: float, allowed: float, unit: str) -> str:
    """Return the meaning of a slope with its interval: flat, grows, falls, or not distinguishable from flat."""
    if abs(slope) <= allowed:
        return "flat"
    words = f"{'grows' if slope > 0 else 'falls'} {abs(slope):.3g} {unit} per hour"
    if low <= allowed and high >= -allowed:
        return f"not distinguishable from flat: {words}, {low:.3g} to {high:.3g}"
    return words


def between(points: Sequence[Point], since_s: float, until_s: float) -> list[Point]:
    """Return the points from `since_s` to `until_s`, both included."""
    return [point for point in points if since_s <= point[0] <= until_s]


def longest_life(points: Sequence[tuple[float, int, float]]) -> list[Point]:
    """Return the points of the longest-lived process without its warm-up; points are (seconds, pid, value)."""
    lives: dict[int, list[Point]] = {}
    for seconds, pid, value in points:
        lives.setdefault(pid, []).append((seconds, value))
    longest = max(lives.values(), key=lambda life: life[-1][0] - life[0][0], default=[])
    return [point for point in longest if point[0] >= longest[0][0] + WARM_S]


def thin(points: Sequence[Point], most: int, *, highest: bool = False) -> list[Point]:
    """Return at most `most` points, each the mean (`highest`: the maximum) of equally many."""
    size = -(-len(points) // most) if points else 1
    thinned = []
    for begin in range(0, len(points), size):
        part = points[begin : begin + size]
        values = [value for _, value in part]
        middle = sum(seconds for seconds, _ in part) / len(part)
        thinned.append((round(middle, 1), _rounded(max(values) if highest else sum(values) / len(values))))
    return thinned


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
