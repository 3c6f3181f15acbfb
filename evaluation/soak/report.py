"""The report of a soak, made from its file of samples; also of an interrupted one."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tamiyo.evaluation.common.command_line import program
from tamiyo.evaluation.common.measure import command, percentile
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.soak.pieces import Piece, Sample, pieces
from tamiyo.evaluation.soak.trends import TOLERANCES, WARM_S, Point, Trend, between, longest_life, thin, trend
from tamiyo.schemas.display import narrow
from tamiyo.schemas.errors import ConfigurationError

FORMAT = 1
MAX_POINTS = 400  # of a series in the report
CALM_S = 60.0  # samples within this time of a fault measure recovery
CONTRADICTIONS = ("windows_unexpected", "graphs_conflicting", "decisions_unexpected", "decisions_conflicting", "late")
"""What an account has of records that contradict others, whether or not all have arrived."""


def report_of(path: Path, since_minute: float | None = None) -> dict[str, Any]:
    """Return the report of a file of samples, with trends from `since_minute` of each piece (default: its second half).

    Raises:
        ConfigurationError: the file has no samples, or none after `since_minute`.
    """
    every = pieces(path)
    loaded: list[Sample] = []
    faults: list[Sample] = []
    trends: dict[str, Trend] = {}
    began = 0.0
    for number, piece in enumerate(every, 1):
        until = piece.loaded[-1]["t"]
        since = until / 2 if since_minute is None else 60 * since_minute
        if not since <= until:
            raise ConfigurationError(
                f"{path} has no samples after minute {since_minute:g}: its load ended at {until / 60:.1f}"
            )
        for name, quantity, _, fitted in _series(piece.loaded, piece.begin["witnesses"], since):
            if fitted is not None:
                label = name if len(every) == 1 else f"piece {number}: {name}"
                trends[label] = trend(between(fitted, since, until), TOLERANCES[quantity])
        # Pieces follow each other without a gap; a process of a later one is another process.
        loaded += [_moved(sample, began, number) for sample in piece.loaded]
        faults += [{**fault, "t": fault["t"] + began} for fault in piece.faults]
        began += until
    begin, last = every[0].begin, every[-1].samples[-1]
    lasts = [piece.samples[-1] for piece in every]
    return {
        "format": FORMAT,
        "command": command("tamiyo.evaluation.soak", begin["command"].split()[3:]),
        "seed": begin["options"]["seed"],
        "minutes": round(sum(piece.seconds for piece in every) / 60, 1),
        "pieces": [
            {
                "minutes": round(piece.seconds / 60, 1),
                "complete": piece.complete,
                "drained": piece.drained,
                "machine": piece.begin["machine"],
                "commit": piece.begin.get("commit"),  # pieces of earlier programs have none
                "account": piece.samples[-1]["account"],
            }
            for piece in every
        ],
        "complete": every[-1].complete,
        "machine": begin["machine"],
        "versions": begin["versions"],
        "settings": begin["settings"],
        "load": _load(every, loaded),
        "faults": {
            "count": len(faults),
            "by_kind": dict(Counter(_kind(fault) for fault in faults)),
            "minutes": [[round(fault["t"] / 60, 2), _kind(fault), fault["victim"]] for fault in faults],
        },
        "restarts": dict(sum((Counter(each["restarts"]) for each in lasts), Counter[str]())),
        "ends_by_themselves": [[name, code] for each in lasts for name, code, meant in each["ends"] if not meant],
        "account": _account(every),
        "undelivered": sum(each["undelivered"] for each in lasts),
        "read": dict(sum((Counter(each["read"]) for each in lasts), Counter[str]())),
        "policy_versions": last["policy_version"],
        "latency_ms": _latency(loaded, faults),
        "lag": _lag(loaded, last),
        "spared_in_the_second_half": begin["witnesses"],
        "judged_since_minute": round((every[0].loaded[-1]["t"] / 120) if since_minute is None else since_minute, 1),
        "trends": {name: each.to_dict() for name, each in trends.items()},
        "verdict": _verdict(trends),
        "series": {name: _as_series(quantity, points) for name, quantity, points, _ in _series(loaded, (), 0.0)},
    }


def _moved(sample: Sample, began_s: float, piece: int) -> Sample:
    """Return a sample of a piece that begins at `began_s`; a process's id has the piece, as ids are used again."""
    processes = {name: {**each, "pid": (piece, each["pid"])} for name, each in sample["processes"].items()}
    return {**sample, "t": sample["t"] + began_s, "processes": processes}


def _account(every: Sequence[Piece]) -> dict[str, Any]:
    """Return the sum of the pieces' accounts. Of a killed piece only contradictions count."""
    accounts = [piece.samples[-1]["account"] for piece in every]
    total: dict[str, Any] = {name: sum(each[name] for each in accounts) for name in accounts[0] if name != "clean"}
    contradicted = any(each[name] for each in accounts for name in CONTRADICTIONS)
    drained = [each["clean"] for piece, each in zip(every, accounts, strict=True) if piece.drained]
    return {**total, "clean": bool(drained) and all(drained) and not contradicted}


def _kind(fault: Sample) -> str:
    return "broker restart" if fault["victim"] == "broker" else str(fault["what"])


def _series(
    samples: Sequence[Sample], witnesses: Sequence[str], since_s: float
) -> Iterator[tuple[str, str, list[Point], list[Point] | None]]:
    """Yield name, quantity, all points, and the points for a trend (None: no trend is fitted).

    Of processes, only witnesses get a trend: a life of minutes shows nothing about hours, the JVM manages its own
    memory, and the soak program keeps the account of all records ever sent.
    """
    names = sorted({name for sample in samples for name in sample["processes"]})
    for name in names:
        for quantity in ("rss_mb", "fds", "threads", "cores"):
            lived = list(_process(samples, name, quantity))
            points = [(seconds, value) for seconds, _, value in lived]
            late = [point for point in lived if point[0] >= since_s - WARM_S]
            yield f"{name} {quantity}", quantity, points, longest_life(late) if name in witnesses else None
    for stage in sorted({stage for sample in samples for stage in sample["lag"] or ()}):
        points = [(sample["t"], sample["lag"][stage]) for sample in samples if sample["lag"]]
        yield f"{stage} lag", "lag", points, points
    for quantile, label in ((0.5, "p50"), (0.99, "p99")):
        points = [
            (sample["t"], percentile(sample["latencies_ms"], quantile)) for sample in samples if sample["latencies_ms"]
        ]
        yield f"decision {label}", "latency_ms", points, points


def _process(samples: Sequence[Sample], name: str, quantity: str) -> Iterator[tuple[float, int, float]]:
    if quantity != "cores":
        for sample in samples:
            if name in sample["processes"]:
                each = sample["processes"][name]
                yield sample["t"], each["pid"], each[quantity]
        return
    for before, after in pairwise(samples):
        old, new = before["processes"].get(name), after["processes"].get(name)
        if old and new and old["pid"] == new["pid"]:
            yield after["t"], new["pid"], (new["cpu_s"] - old["cpu_s"]) / (after["t"] - before["t"])


def _as_series(quantity: str, points: Sequence[Point]) -> dict[str, Any]:
    thinned = thin(points, MAX_POINTS, highest=quantity in ("lag", "latency_ms"))
    return {
        "unit": TOLERANCES[quantity].unit,
        "minutes": [round(seconds / 60, 2) for seconds, _ in thinned],
        "values": [value for _, value in thinned],
    }


def _load(every: Sequence[Piece], samples: Sequence[Sample]) -> dict[str, Any]:
    seconds = sum(piece.seconds for piece in every)
    sent = sum(piece.loaded[-1]["sent"] - piece.loaded[0]["sent"] for piece in every)
    cores = {
        name: round(sum(value for _, _, value in spent) / len(spent), 3)
        for name in sorted({name for sample in samples for name in sample["processes"]})
        if (spent := list(_process(samples, name, "cores")))
    }
    return {
        **every[0].begin["options"],
        "records_sent": sum(piece.loaded[-1]["sent"] for piece in every),
        "records_per_second": round(sent / seconds, 1) if seconds else None,
        "runs_begun": sum(piece.loaded[-1]["runs"] for piece in every),
        "load_average": _load_average(samples),
        "cores": cores,
        "cores_together": round(sum(cores.values()), 3),
    }


def _load_average(samples: Sequence[Sample]) -> dict[str, float] | None:
    """Return the load average of the whole machine: other programs show in the latencies."""
    known = [sample["load_average"] for sample in samples if "load_average" in sample]
    return {"mean": round(sum(known) / len(known), 2), "maximum": max(known)} if known else None


def _latency(samples: Sequence[Sample], faults: Sequence[Sample]) -> dict[str, Any]:
    """Return quantiles over all samples, and over samples without a fault in the minute before."""

    def calm(sample: Sample) -> bool:
        # A sample covers the ten seconds before it; a frozen process delays decisions until it continues.
        return not any(
            fault["t"] - 1 <= sample["t"] <= fault["t"] + fault["duration_s"] + CALM_S + 10 for fault in faults
        )

    return {
        "from": "the publishing of the frame that completed a window, to the broker's time of its decision",
        "all": _quantiles([value for sample in samples for value in sample["latencies_ms"]]),
        "no_fault_within_a_minute": _quantiles(
            [value for sample in samples if calm(sample) for value in sample["latencies_ms"]]
        ),
    }


def _quantiles(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"n": 0}
    found = {name: round(percentile(values, q), 1) for name, q in (("p50", 0.5), ("p99", 0.99), ("maximum", 1.0))}
    return {"n": len(values), **found}


def _lag(samples: Sequence[Sample], last: Sample) -> dict[str, dict[str, Any]]:
    known = [sample["lag"] for sample in samples if sample["lag"]]
    return {
        stage: {
            "maximum": max(each[stage] for each in known),
            "at_the_end_of_the_load": known[-1][stage],
            "after_draining": (last["lag"] or {}).get(stage),
        }
        for stage in (known[-1] if known else ())
    }


def _verdict(trends: dict[str, Trend]) -> dict[str, Any]:
    growing = [name for name, each in trends.items() if each.grows]
    unclear = [name for name, each in trends.items() if each.verdict.startswith("not")]
    return {"flat": not growing and not unclear, "growing": growing, "not_judged_or_unclear": unclear}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the summary of a report."""
    table = Table("series", f"trend since minute {result['judged_since_minute']:g}", "per hour", "95 %", "minutes")
    for name, each in result["trends"].items():
        interval = "" if each["low"] is None else f"{each['low']:g} .. {each['high']:g}"
        slope = "" if each["slope_per_hour"] is None else f"{each['slope_per_hour']:g}"
        table.add_row(name, each["verdict"], slope, interval, f"{each['minutes']:g}")
    console.print(narrow(table))
    for name in ("minutes", "load", "account", "latency_ms", "lag", "restarts", "ends_by_themselves", "verdict"):
        console.print(f"{name}: {json.dumps(result[name])}", highlight=False, soft_wrap=True)
    console.print(f"faults: {json.dumps(result['faults']['by_kind'])}", highlight=False)


app = program()


@app.command(
    epilog="Examples: `python -m tamiyo.evaluation.soak.report soak.jsonl --report soak.json` · "
    "`python -m tamiyo.evaluation.soak.report evaluation/results/soak.jsonl.gz --since 67`"
)
def main(
    samples: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Samples file of `make soak`")],
    since: Annotated[
        float | None, typer.Option(min=0, help="First minute of the trends [default: half the time]")
    ] = None,
    report: ReportFile = None,
) -> None:
    """Make the report of a soak from its samples, gzipped or not; also while it runs, in pieces or interrupted."""
    prepare_report(report)
    try:
        result = report_of(samples, since)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console()
    show(result, console)
    write_report(report, result, console)


if __name__ == "__main__":
    app()
