"""`tamiyo inspect`: one run, or one of its decisions, in the terminal."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from tamiyo.schemas.display import finite, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples
from tamiyo.streams.cli.options.durations import SECONDS, time_ms
from tamiyo.streams.cli.watching import reading
from tamiyo.streams.process.interrupts import on_signals

if TYPE_CHECKING:
    from tamiyo.streams.watch.history import History

REFRESH_S = 0.5  # a reader follows no more than two frames a second
AGES_S = 5.0
OLDEST_S = 7 * SECONDS["d"]
CLOCK_MARGIN_MS = 60_000  # a host's records may reach the broker a little before its topology

console = Console()


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(
        rich_help_panel=options.OPERATE,
        epilog=examples(
            "tamiyo inspect mnist1d-0",
            "tamiyo inspect mnist1d-0 --watch",
            "tamiyo inspect mnist1d-0 --decision 9f86d081",
            "tamiyo inspect mnist1d-0 --recording recordings/monday --json",
        ),
    )(inspect)


def inspect(
    run: Annotated[
        str,
        typer.Argument(callback=options.check_run_id, help="A run, or a beginning of its id that no other run has."),
    ],
    decision: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Show this decision in full; a beginning of its id is enough."),
    ] = None,
    decisions: Annotated[
        int, typer.Option("--decisions", "-n", min=0, max=2_000, metavar="N", help="List the newest N decisions.")
    ] = 15,
    no_ops: Annotated[bool, typer.Option("--no-ops", help="List decisions to do nothing too.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C; a JSON document a line with --json.")
    ] = False,
    recording: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Read a recording instead of the topics.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Read from this time on: a duration back such as 2d, or 2026-05-01T10:00 (UTC).",
            show_default="when the run attached, at most 7d ago",
        ),
    ] = None,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Show a run: its state, curves, decisions and their rewards, kernels and layers; or one decision in full."""
    if recording is not None and (watch or since is not None):
        raise ConfigurationError("a recording is read whole and does not change: leave out --watch and --since")
    asked_ms = time_ms("--since", since)
    kafka = None if recording is not None else options.connected_kafka(bootstrap)
    known = (
        reading.runs_of_recording(recording)
        if recording is not None
        else reading.runs_on_topics(kafka, options.names())  # type: ignore[arg-type]
    )
    run_id = reading.chosen_run(run, known)
    since_ms = _since_ms(known.get(run_id)) if asked_ms is None else asked_ms
    stop = threading.Event()
    on_signals(stop.set)
    feed = reading.open_feed(kafka, recording, _topics(), since_ms=since_ms, run_id=run_id, follow=watch)
    with reading.started(feed):
        reading.wait(feed, stop.is_set)
        shown = _Shown(feed.history, run_id, decision, known, decisions, no_ops)
        if not watch:
            _print(shown, as_json)
        elif as_json:
            _watch(feed.history, stop, lambda: _write_line(shown.document()))
        else:
            _live(feed.history, stop, shown)


class _Shown:
    """What the command shows of a history."""

    def __init__(
        self, history: "History", run_id: str, decision: str | None, known: dict[str, int], newest: int, no_ops: bool
    ) -> None:
        self._history = history
        self._run_id = run_id
        self._known = known
        self._newest = newest
        self._no_ops = no_ops
        self._decision = None if decision is None else self._decision_id(decision)

    def document(self) -> dict[str, Any]:
        """Return the view's document."""
        from tamiyo.streams.watch import views

        if self._decision is not None:
            return views.decision(self._history, self._run_id, self._decision)
        return self._run()

    def render(self) -> RenderableType:
        """Return it for a terminal."""
        from tamiyo.streams.watch import views
        from tamiyo.streams.watch.terminal import Canvas, render_decision, render_run, shown_decisions

        canvas = Canvas.of(console)
        document = self.document()
        if self._decision is not None:
            return render_decision(document, canvas)
        details = {
            row["decision_id"]: views.decision(self._history, self._run_id, row["decision_id"])
            for row in shown_decisions(document, self._newest, no_ops=self._no_ops)
            if row.get("reward") is not None
        }
        return render_run(document, canvas, decisions=self._newest, no_ops=self._no_ops, details=details)

    def _run(self) -> dict[str, Any]:
        from tamiyo.streams.watch import views

        try:
            return views.run(self._history, self._run_id)
        except views.UnknownIdError:
            raise reading.unknown_run(self._run_id, self._known) from None

    def _decision_id(self, text: str) -> str:
        ids: list[str] = [row["decision_id"] for row in self._run()["decisions"]]
        if text in ids:
            return text
        fitting = [each for each in ids if each.startswith(text)]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            raise ConfigurationError(
                f"run {self._run_id} has no decision {text} among the {len(ids):,} that were read: see "
                f"`tamiyo inspect {self._run_id} --no-ops`, and --since for earlier ones"
            )
        raise ConfigurationError(f"{len(fitting):,} decisions begin with {text}: {', '.join(fitting[:3])} ...")


def _topics() -> Any:
    from tamiyo.schemas import topics

    # Signals, windows, experiences and the kernels' latencies are many, and nothing of them is shown.
    return (
        topics.TOPOLOGY, topics.MODEL_PERFORMANCE, topics.LAYER_HEALTH, topics.ERROR_RECOVERY, topics.GRAPHS,
        topics.DECISIONS, topics.KERNELS, topics.OUTCOMES, topics.REWARDS, topics.CONTROL,
    )  # fmt: skip


def _since_ms(attached_ms: int | None) -> int:
    oldest_ms = round(1000 * (time.time() - OLDEST_S))
    return oldest_ms if attached_ms is None else max(oldest_ms, attached_ms - CLOCK_MARGIN_MS)


def _print(shown: _Shown, as_json: bool) -> None:
    if as_json:
        write_json(shown.document())
    else:
        console.print(shown.render())


def _write_line(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(finite(document)) + "\n")
    sys.stdout.flush()


def _watch(history: "History", stop: threading.Event, show: Callable[[], None]) -> None:
    """Call `show` now and after changes, at most every `REFRESH_S` seconds, until `stop`."""
    changed = threading.Event()
    unsubscribe = history.subscribe(changed.set)
    try:
        changed.set()
        shown = 0.0
        while not stop.is_set():
            # Without a change it is shown again for its times, which are ages.
            if changed.is_set() or time.monotonic() - shown > AGES_S:
                changed.clear()
                show()
                shown = time.monotonic()
            stop.wait(REFRESH_S)
    finally:
        unsubscribe()


def _live(history: "History", stop: threading.Event, shown: _Shown) -> None:
    from rich.live import Live

    first = shown.render()
    with Live(first, console=console, auto_refresh=False, vertical_overflow="ellipsis") as live:
        _watch(history, stop, lambda: live.update(shown.render(), refresh=True))
