"""The bars of the benchmark: what `make bench` must reach on one machine, and whether it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tamiyo.evaluation.bench.host import LOOPS
from tamiyo.evaluation.common.measure import Result


@dataclass(frozen=True)
class Bar:
    """A limit for one row of the report."""

    name: str
    limit: float
    unit: str
    group: str
    row: str
    """The row's name in its group."""
    better: str = "higher"
    quantity: str = "median"
    """The median of the repeats, or a key of the row's details."""

    def value(self, results: Sequence[Result]) -> float | None:
        """Return the measured value, None where the row was not measured."""
        for result in results:
            if (result.group, result.name) == (self.group, self.row):
                return result.median if self.quantity == "median" else float(result.extra[self.quantity])
        return None


@dataclass(frozen=True)
class Verdict:
    """A bar and the value that was measured."""

    bar: Bar
    value: float | None

    @property
    def met(self) -> bool:
        """Return whether the value was measured and reaches the bar."""
        if self.value is None:
            return False
        return self.value >= self.bar.limit if self.bar.better == "higher" else self.value < self.bar.limit

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the report."""
        return {"value": self.value, "bar": self.bar.limit, "met": self.met}


def _broker(name: str, limit: float) -> Bar:
    return Bar(name, limit, "signals/s/core", "on a broker", name)


def _decision(graphs: str, limit_ms: float) -> Bar:
    return Bar(f"decision p99, {graphs}", limit_ms, "ms", "decision latency", f"{graphs} waiting", "lower", "p99_ms")


# What one row is worth on its own is compared with the same program's figures of 2026-11-28, on two cores.
BARS = (
    Bar("telemetry to window / Quix Streams", 4.0, "ratio", "peers", "ours / Quix Streams, a core"),
    _broker("telemetry to decision", 40_000.0),
    Bar("one layer a frame", 3 * 763.0, "signals/s/core", "on a broker", "telemetry to window, one layer a frame"),
    _broker("telemetry to window", 14_724.0),
    *(
        Bar(f"{stage} alone", 95_000.0, "signals/s/core", "stage alone", stage)
        for stage in ("intake", "windows", "graphs", "decisions", "rewards")
    ),
    _decision("1 graph", 3.0),
    _decision("32 graphs", 50.0),
    Bar("intake p99", 10.0, "ms", "intake latency", "p99, frame produced to signal", "lower"),
    *(
        Bar(f"SDK overhead, {name}", each.overhead, "ratio", "SDK", f"overhead on the step, {name}", "lower")
        for name, (each, _) in LOOPS.items()
    ),
    Bar("learner update", 600.0, "ms", "learner", "update", "lower"),
)
"""Every bar. The SDK's are .1 from steps of .5 ms on and .03 from 5 ms on; the loops' rows state their steps."""


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """Return every bar with its value."""
    return [Verdict(bar, bar.value(results)) for bar in BARS]
