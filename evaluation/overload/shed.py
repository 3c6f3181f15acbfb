"""The shedding of intake, from the signals: how much was shed, and whether the lowest priorities were shed first."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH, SIGNALS

SLACK = 1e-6  # rounding of survival; the order of equal priorities is arbitrary


@dataclass
class Shed:
    """Sums over signals.

    A kernel_performance frame loses the shed layers: those left, weighted by 1 / survival, estimate the original
    number. A layer_health frame keeps every layer's priority and survival; only its metrics are emptied.
    """

    layer_signals: int = 0
    offered: int = 0
    signals: int = 0
    """Frames with shed layers."""
    out_of_order: int = 0
    """Pairs of neighbours by priority in one frame in which the higher priority had the lower survival."""
    kept: int = 0
    estimated: float = 0.0
    known: int = 0
    quarters: dict[str, list[float]] = field(default_factory=lambda: {"lowest": [], "highest": []})

    def add(self, signal: HealthSignals) -> None:
        """Add one signal."""
        rows = len(signal.layer_id)
        performance = signal.source == KERNEL_PERFORMANCE.name
        self.offered += rows + (signal.shed + signal.filtered if performance else 0)
        self.layer_signals += signal.shed
        if not signal.shed:
            return
        self.signals += 1
        ordered = [chance for _, chance in sorted(zip(signal.priority.tolist(), signal.survival.tolist(), strict=True))]
        self.out_of_order += sum(after < before - SLACK for before, after in pairwise(ordered))
        if performance:
            self.kept += rows
            self.known += rows + signal.shed
            self.estimated += float((1 / signal.survival).sum())
        elif signal.source == LAYER_HEALTH.name:
            quarter = max(1, rows // 4)
            self.quarters["lowest"] += ordered[:quarter]
            self.quarters["highest"] += ordered[-quarter:]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        return {
            "layer_signals": self.layer_signals,
            "share": round(self.layer_signals / self.offered, 4) if self.offered else 0.0,
            "signals": self.signals,
            "out_of_order": self.out_of_order,
            "mean_survival_of_the_quarter_with_the": {
                name: round(sum(each) / len(each), 4) if each else None for name, each in self.quarters.items()
            },
            "estimated_from_what_was_kept": round(self.estimated / self.known, 4) if self.known else None,
        }


def shed_of(signals: Iterable[HealthSignals]) -> Shed:
    """Return the sums over `signals`."""
    found = Shed()
    for signal in signals:
        found.add(signal)
    return found


def shed(kafka: KafkaSettings, names: TopicNames) -> dict[str, Any]:
    """Read all signals of an installation and return the sums."""
    found = Shed()
    with PartitionReader(kafka) as reader:
        for message in reader.read(reader.ranges(names.full(SIGNALS.name))):
            found.add(decode(message.value(), HealthSignals))
    return found.to_dict()
