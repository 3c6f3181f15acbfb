"""What `tamiyo lab` prints: tables, JSON and progress."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tamiyo.schemas.display import narrow, write_json

if TYPE_CHECKING:
    from tamiyo.evaluation.lab.compare import Comparison, Pair
    from tamiyo.evaluation.lab.run import RunResult
    from tamiyo.evaluation.lab.truth import Truth

ROWS = 12
"""Rows of a curve that a terminal shows."""

console = Console()
errors = Console(stderr=True)


def print_curve(result: "RunResult", never: "RunResult") -> None:
    table = Table(*map(right, ("step", "compute s", "validation", "test", "kernel parameters", "never: test")))
    curve, last = result.curve, len(result.curve.step) - 1
    shown = sorted({round(index * last / (ROWS - 1)) for index in range(ROWS)}) if last >= 0 else []
    for index in shown:
        table.add_row(
            f"{curve.step[index]:,}",
            f"{curve.compute[index]:.2f}",
            f"{curve.validation[index]:.4f}",
            f"{curve.test[index]:.4f}",
            f"{curve.kernel_parameters[index]:,}",
            f"{never.curve.test[index]:.4f}",
        )
    console.print(narrow(table))


def print_adaptations(result: "RunResult") -> None:
    if not result.adaptations:
        console.print("no adaptation")
        return
    table = Table(right("step"), "adaptation", "status")
    for each in result.adaptations:
        table.add_row(f"{each.step:,}", _in_words(each.type, each.blueprint, each.layer_id), each.status)
    console.print(narrow(table))


def print_comparison(found: "Sequence[Comparison]", rows: "Sequence[Pair]", as_json: bool) -> None:
    if as_json:
        write_json({"comparisons": [asdict(each) for each in found], "pairs": [asdict(each) for each in rows]})
        return
    if not found:
        console.print("no pair of runs is finished")
        return
    title = "nats of test loss gained over never adapting: mean [95 % interval]"
    columns = ("pairs", "equal compute", "equal steps", "costs", "adaptations", "compute")
    table = Table("task, policy", *map(right, columns), title=title)
    for each in found:
        table.add_row(
            f"{each.task}\n{each.policy}", str(each.pairs), str(each.equal_compute), str(each.equal_steps),
            f"{each.cost:.3f}", f"{each.adaptations:.1f}", f"{each.slower:.2f}x",
        )  # fmt: skip
    console.print(narrow(table))


def truth_row(truth: "Truth", horizons: Sequence[int]) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:+.4f}"

    each = truth.adaptation
    near = [shown(truth.near.get(horizon)) for horizon in horizons]
    words = _in_words(each.type, each.blueprint, each.layer_id)
    return [words, shown(truth.gain), *near, f"{truth.cost:.4f}", shown(truth.worth)]


def _in_words(type: str, blueprint: str, layer: str) -> str:
    return f"{type} {blueprint} at {layer}" if blueprint else f"{type} at {layer}"


def right(header: str) -> Any:
    from rich.table import Column

    return Column(header, justify="right")


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error; yield what advances it."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    # Where nobody watches, it would only leave an empty line.
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)
