"""The report of fault runs: one section for each run, and a summary of all."""

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tamiyo.evaluation.common.measure import percentile
from tamiyo.evaluation.faults.judge import Violation
from tamiyo.schemas.errors import ConfigurationError

FORMAT = 1


@dataclass(slots=True)
class Injection:
    """One fault, as it happened."""

    kind: str
    began_s: float
    """Seconds since the first fault, as all times here."""
    what: str = ""
    ended_s: float | None = None
    recovery_seconds: float | None = None
    """From its end (of a frozen worker: its begin, as others take over) to decisions on every partition."""
    healed: float = field(default=0.0, repr=False)


@dataclass(slots=True)
class Course:
    """One run of the program: its faults and violations."""

    seed: int
    injections: list[Injection] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    """Kinds that were not possible, with the reason."""
    means: str = ""
    seconds: float = 0.0
    interrupted: bool = False
    drained: bool = True


def run_report(course: Course, command: str) -> dict[str, Any]:
    """Return the section of one run."""
    return {
        "seed": course.seed,
        "command": command,
        "machine": {"python": platform.python_version(), "system": platform.system(), "cores": os.cpu_count()},
        "seconds": round(course.seconds, 1),
        "interrupted": course.interrupted,
        "drained": course.drained,
        "full_disks": course.means,
        "left_out": course.left_out,
        "process_ends_by_status": dict(course.ends),
        "counts": course.counts,
        "violations": [each.to_dict() for each in course.violations],
        "injections": [
            {key: value for key, value in asdict(each).items() if key != "healed"} for each in course.injections
        ],
    }


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the sections of the runs in a report.

    Raises:
        ConfigurationError: the file cannot be read, or is no report of faults.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as a report of faults: {error}") from error
    known = isinstance(report, dict) and report.get("format") == FORMAT and isinstance(report.get("runs"), list)
    if not known or not all("seed" in each and "injections" in each for each in report["runs"]):
        raise ConfigurationError(f"{path} is no report of faults: expected a file that `make faults --report` wrote")
    runs: list[dict[str, Any]] = report["runs"]
    return runs


def summary(every: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the report of one or several runs, in order of their seeds."""
    runs = sorted(every, key=lambda run: int(run["seed"]))
    injections = [each for run in runs for each in run["injections"]]
    recoveries: dict[str, list[float]] = {}
    for each in injections:
        if each["recovery_seconds"] is not None:
            recoveries.setdefault(each["kind"], []).append(each["recovery_seconds"])
    everything = [seconds for found in recoveries.values() for seconds in found]
    return {
        "format": FORMAT,
        "faults": len(injections),
        "seed": runs[0]["seed"] if len(runs) == 1 else [run["seed"] for run in runs],
        "graphs": sum(run["counts"].get("different graphs", 0) for run in runs),
        "violations": [{"seed": run["seed"], **each} for run in runs for each in run["violations"]],
        "counts": dict(Counter(each["kind"] for each in injections)),
        "recovery_seconds": {
            name: _quantiles(found) for name, found in [*sorted(recoveries.items()), ("all", everything)] if found
        },
        "runs": runs,
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(values),
        "p50": round(percentile(values, 0.5), 2),
        "p90": round(percentile(values, 0.9), 2),
        "max": round(max(values), 2),
    }
