"""How the benchmark measures: warm-up, repeats, and processor seconds beside wall seconds.

Throughput is counted a core: work done / processor seconds that the measured processes spent (user and system).
On a machine that others use too, wall time says how busy they are, processor time what the work costs.
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

PACKAGES = (
    "esper-tamiyo", "torch", "torch-geometric", "faust-streaming", "aiokafka", "confluent-kafka", "fastavro",
    "pydantic", "numpy", "quixstreams",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One line of the report: a quantity measured in every repeat."""

    group: str
    name: str
    unit: str
    values: tuple[float, ...]
    """One value a repeat, in order, warm-up left out."""
    better: str = "higher"
    extra: dict[str, Any] = field(default_factory=dict)
    """What else belongs to the number: percentiles, sizes, counts."""

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The middle value; the mean of the middle two where their number is even."""
        return statistics.median(self.values)

    @property
    def maximum(self) -> float:
        """The largest value."""
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        summary = {"minimum": self.minimum, "median": self.median, "maximum": self.maximum}
        return {**asdict(self), "values": list(self.values), **summary}


@dataclass(frozen=True)
class Spent:
    """What a piece of work cost."""

    wall_s: float
    cpu_s: float
    """User and system time of the processes measured, all their threads."""


def spend(work: Callable[[], object]) -> Spent:
    """Run `work` in this process and return its cost."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def repeat(work: Callable[[], Spent], *, repeats: int, warm_up: int = 1) -> list[Spent]:
    """Call `work` `warm_up` times unseen, then `repeats` times; return the latter's costs."""
    for _ in range(warm_up):
        work()
    return [work() for _ in range(repeats)]


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """Return the user and system seconds that running processes have spent so far, all their threads."""
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
    """Return how a program was called; files by their names alone, since folders are the caller's own."""
    told = [Path(argument).name if os.sep in argument else argument for argument in arguments]
    return " ".join(["python -m", module, *told])


def machine() -> dict[str, Any]:
    """Return what the numbers depend on; nothing that names the machine."""
    return {
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured; a package that is not there is left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
