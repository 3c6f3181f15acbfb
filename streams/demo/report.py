"""The report of a demo, from topics, metrics and training results, as JSON and as text."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from tamiyo.schemas import topics
from tamiyo.schemas.adaptation import OutcomeStatus
from tamiyo.schemas.files import write_atomically
from tamiyo.streams.demo.observer import Observer
from tamiyo.streams.watch.terminal.canvas import plural

LATENCIES = {
    "intake": ("tamiyo_stage_latency_seconds", {"stage": "intake"}),
    "decision": ("tamiyo_stage_latency_seconds", {"stage": "decisions"}),
    "telemetry_to_decision": ("tamiyo_end_to_end_latency_seconds", {}),
}


@dataclass
class Report:
    """The results of a demo."""

    task: str
    seed: int
    wall_seconds: float
    complete: bool
    host: dict[str, Any] | None
    static: dict[str, Any] | None
    runs: list[dict[str, Any]]
    counts: dict[str, int]
    latency_ms: dict[str, dict[str, float | None]]
    decisions: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")


def counts(observer: Observer) -> dict[str, int]:
    """Return the counts of records on the topics."""
    executed = [o for o in observer.outcomes.values() if o.status is OutcomeStatus.EXECUTED]
    return {
        "telemetry_records": sum(observer.records[topic.name] for topic in topics.TELEMETRY),
        "signals": observer.records[topics.SIGNALS.name],
        "layer_signals": observer.layer_signals,
        "windows": len(observer.ids[topics.WINDOWS.name]),
        "graphs": len(observer.ids[topics.GRAPHS.name]),
        "decisions": len(observer.decisions),
        "adaptations_asked_for": sum(d.type != "no_op" for d in observer.decisions.values()),
        "executed": len(executed),
        "outcomes": len(observer.outcomes),
        "rewards": len(observer.ids[topics.REWARDS.name]),
        "experiences": len(observer.ids[topics.EXPERIENCE.name]),
        "policy_updates": observer.policy_updates,
        "policy_versions_served": len(observer.policy_versions),
        "dead_letters": observer.dead_letters,
        "late": observer.late,
    }


def decisions(observer: Observer) -> list[dict[str, Any]]:
    """Return every decision with its outcome and reward, in order of run and step."""
    rows = []
    for decision in sorted(observer.decisions.values(), key=lambda d: (d.run_id, d.step)):
        outcome = observer.outcomes.get(decision.decision_id)
        reward = observer.rewards.get(decision.decision_id)
        rows.append(
            {
                "id": decision.decision_id,
                "run_id": decision.run_id,
                "step": decision.step,
                "layer": decision.layer_id,
                "type": decision.type,
                "blueprint": decision.blueprint,
                "confidence": decision.confidence,
                "uncertainty": decision.uncertainty,
                "method": decision.method,
                "policy_version": decision.policy_version,
                "executed": outcome is not None and outcome.status is OutcomeStatus.EXECUTED,
                "executed_at_step": outcome.step if outcome else None,
                "outcome": outcome.status.value if outcome else None,
                "reward": reward.total if reward else None,
                "explanation": reward.explanation if reward else decision.explanation,
            }
        )
    return rows


def latencies(pages: list[str]) -> dict[str, dict[str, float | None]]:
    """Return p50 and p99 in ms from the metrics pages of the workers; None where nothing was measured."""
    return {
        name: {f"p{q}": milliseconds(quantile(q / 100, buckets(pages, metric, labels))) for q in (50, 99)}
        for name, (metric, labels) in LATENCIES.items()
    }


def milliseconds(seconds: float | None) -> float | None:
    """Return seconds as milliseconds, rounded to a microsecond."""
    return None if seconds is None else round(seconds * 1_000, 3)


def buckets(pages: list[str], metric: str, labels: dict[str, str]) -> dict[float, float]:
    """Add up a histogram's cumulative buckets (upper bound in seconds to count) over several pages."""
    total: dict[float, float] = {}
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == f"{metric}_bucket" and labels.items() <= sample.labels.items():
                    bound = float(sample.labels["le"])
                    total[bound] = total.get(bound, 0.0) + sample.value
    return total


def quantile(q: float, cumulative: dict[float, float]) -> float | None:
    """Return the `q` quantile by linear interpolation in its bucket, as Prometheus' histogram_quantile does.

    In the last bucket, which has no upper bound, it is that bucket's lower bound; None for an empty histogram.
    """
    bounds = sorted(cumulative)
    if not bounds or cumulative[bounds[-1]] == 0:
        return None
    rank = q * cumulative[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if cumulative[bound] >= rank:
            if math.isinf(bound):
                return lower
            inside = cumulative[bound] - below
            return bound if inside == 0 else lower + (bound - lower) * (rank - below) / inside
        lower, below = bound, cumulative[bound]
    return lower


def show(report: Report, console: Console) -> None:
    """Print a summary: the runs and their static twins, adaptations, counts and latencies."""
    if report.host and report.static:
        title = f"{report.task}, {'all runs' if len(report.runs) > 1 else f'seed {report.seed}'}"
        table = Table(title=title, show_edge=False)  # fits eighty columns
        for column in ("run", "network", "steps", "validation loss", "test accuracy", "parameters", "overhead"):
            justify: Literal["left", "right"] = "left" if column in ("run", "network") else "right"
            table.add_column(column, justify=justify, min_width=max(map(len, column.split())))
        for run in report.runs:
            for name, side in (("with Tamiyo", run.get("host")), ("static twin", run.get("static"))):
                if side:
                    overhead = f"{side['overhead_ratio']:.1%}" if name == "with Tamiyo" else ""
                    table.add_row(
                        f"seed {run['seed']}",
                        name,
                        f"{side['steps']:,}",
                        f"{side['validation_loss']:.3f}",
                        f"{side['test_accuracy']:.1%}",
                        f"{side['parameters']:,}",
                        overhead,
                    )
        console.print(table)
    adaptations = [row for row in report.decisions if row["type"] != "no_op"]
    console.print(f"\n{plural(len(adaptations), 'adaptation')} in {plural(len(report.decisions), 'decision')}")
    for row in adaptations:
        what = row["type"] if row["blueprint"] is None else f"{row['type']} {row['blueprint']}"
        reward = "no reward yet" if row["reward"] is None else f"{row['reward']:+.2f}"
        outcome = row["outcome"] or "pending"
        name = f"{row['run_id']} " if len(report.runs) > 1 else ""
        console.print(
            f"[bold]{name}step {row['step']}: {what} at {row['layer']}[/] {outcome}, {reward}", highlight=False
        )
        console.print(f"  [dim]{row['explanation']}[/]", highlight=False)
    console.print()
    console.print("counts     " + ", ".join(f"{name} {value:,}" for name, value in report.counts.items()))
    spans = (
        f"{name} {span['p50']:.1f} / {span['p99']:.1f}"
        for name, span in report.latency_ms.items()
        if span["p50"] is not None and span["p99"] is not None
    )
    console.print("latency    ms, p50 / p99: " + ", ".join(spans))
    console.print(f"took       {report.wall_seconds:.0f} s" + ("" if report.complete else " (stopped early)"))
