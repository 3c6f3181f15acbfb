"""Measurement for the benchmarks: warm-up, repeats, and processor seconds beside wall seconds.

Throughput is per core: work done / processor seconds (user and system) of the measured processes. On a shared machine
wall time depends on the other users, processor time on the work alone.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from tamiyo.evaluation.common.last_release import git

PACKAGES = (
    "esper-tamiyo", "torch", "torch-geometric", "faust-streaming", "aiokafka", "confluent-kafka", "fastavro",
    "pydantic", "numpy", "quixstreams",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One row of the report: a quantity measured in every repeat."""

    group: str
    name: str
    unit: str
    values: tuple[float, ...]
    """One value per repeat, in order, without the warm-up."""
    better: str = "higher"
    extra: dict[str, Any] = field(default_factory=dict)
    """Details: percentiles, sizes, counts."""

    @property
    def minimum(self) -> float:
        """Return the smallest value."""
        return min(self.values)

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    @property
    def maximum(self) -> float:
        """Return the largest value."""
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        summary = {"minimum": self.minimum, "median": self.median, "maximum": self.maximum}
        return {**asdict(self), "values": list(self.values), **summary}


@dataclass(frozen=True)
class Spent:
    """The cost of a piece of work."""

    wall_s: float
    cpu_s: float
    """User and system time of all threads of the measured processes."""


def spend(work: Callable[[], object]) -> Spent:
    """Run `work` in this process and return its cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def repeat(work: Callable[[], Spent], *, repeats: int, warm_up: int = 1) -> list[Spent]:
    """Call `work` `warm_up` times unmeasured, then `repeats` times; return the costs of the repeats."""
    for _ in range(warm_up):
        work()
    return [work() for _ in range(repeats)]


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return the user and system seconds of all threads of running processes so far."""
    total = 0.0
    for process in processes:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def percentile(values: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0..1) by linear interpolation between the closest ranks."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def command(module: str, arguments: Sequence[str]) -> str:
    """Return how a program was called; of paths only the file name, since folders are private to the caller."""
    shown = [Path(argument).name if os.sep in argument else argument for argument in arguments]
    return " ".join(["python -m", module, *shown])


def machine() -> dict[str, Any]:
    """Return the properties of the machine that numbers depend on, without its name."""
    return {
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "python": platform.python_version(),
    }


def versions(kafka_home: Path | None = None) -> dict[str, str]:
    """Return the versions of the installed packages that are measured, and of an unpacked Kafka if one is given."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if kafka_home is not None:
        found["kafka"] = _kafka_version(kafka_home)
    return found


def commit() -> str | None:
    """Return the commit that is measured, with `-dirty` after changes; None where the history is not there."""
    found = git("describe", "--always", "--dirty", "--abbrev=12")
    return found.decode().strip() if found else None


def _kafka_version(home: Path) -> str:
    jars = sorted((home / "libs").glob("kafka-clients-*.jar"))
    return jars[0].stem.removeprefix("kafka-clients-") if jars else "unknown"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
