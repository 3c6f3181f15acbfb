"""`tamiyo record`, `replay`, `diff` and `discard`."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options as settings_of
from tamiyo.streams.cli.options import Bootstrap
from tamiyo.streams.process.interrupts import stop_flag
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget

console = Console()

Runs = Annotated[list[str] | None, typer.Option("--run", help="Only this run's messages; repeat for several")]
Since = Annotated[
    str | None,
    typer.Option(
        help="Messages from this time on, e.g. 2026-05-01T10:00 (UTC); topologies, policies and orders are taken whole"
    ),
]
Until = Annotated[str | None, typer.Option(help="Messages before this time")]
Offsets = Annotated[
    list[str] | None,
    typer.Option(help="TOPIC:PARTITION=FIRST-LAST, either end may be left out; repeat for several"),
]
OFFSETS = re.compile(r"(?P<place>[\w.\-]+:\d{1,6})=(?P<first>\d{0,18})-(?P<last>\d{0,18})")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        epilog="Examples: `tamiyo record recordings/monday --since 2026-05-01` · `tamiyo record one --run mnist1d-0` · "
        "`tamiyo record live --follow` (until Ctrl-C)"
    )(record)
    app.command(
        epilog="Examples: `tamiyo replay recordings/monday --prefix replay1.` · "
        "`tamiyo replay one --prefix slow. --speed 1 --workers 4` · "
        "`tamiyo replay --topics --since 2026-05-01 --prefix p2. --from graphs --policy-version 12 --save judged`"
    )(replay)
    app.command(
        epilog="Examples: `tamiyo diff one judged` · `tamiyo diff topics: topics:replay1. --run mnist1d-0` · "
        "`tamiyo diff old new --ignore explanation`"
    )(diff)
    app.command(epilog="Example: `tamiyo discard replay1.`")(discard)


def record(
    folder: Annotated[Path, typer.Argument(help="Where to: a new folder, or an unfinished recording to go on with")],
    topic: Annotated[list[str] | None, typer.Option(help="Of the catalogue; repeat for several [default: all]")] = None,
    run: Runs = None,
    since: Since = None,
    until: Until = None,
    offsets: Offsets = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C")] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints/--no-checkpoints", help="Copy the policies that decided from the store")
    ] = True,
    bootstrap: Bootstrap = None,
) -> None:
    """Record topics into Avro files: all that is there now, or a choice of it."""
    from tamiyo.streams.settings import StoreSettings

    selection = _selection(topic, run, since, until, offsets)
    stop = stop_flag()
    url = StoreSettings().checkpoints if checkpoints else None
    complete = _record(
        folder,
        settings_of.connected_kafka(bootstrap),
        settings_of.names(),
        selection,
        stop,
        follow=follow,
        checkpoint_url=url,
    )
    if not complete:
        console.print("stopped before the end; the same command goes on with it", style="yellow")
        raise typer.Exit(130)


def replay(
    folder: Annotated[Path | None, typer.Argument(help="A recording; left out with --topics")] = None,
    prefix: Annotated[str, typer.Option(help="Topic prefix of the replay's own, e.g. replay1.")] = "",
    speed: Annotated[str, typer.Option(help="max, or how many times as fast as it was recorded")] = "max",
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Processes that run the stages; 0: you start them yourself")
    ] = 1,
    level: Annotated[
        ReplaySource, typer.Option("--from", help="What is replayed; what follows from it is computed")
    ] = ReplaySource.TELEMETRY,
    target: Annotated[ReplayTarget, typer.Option("--to", help="The last thing computed")] = ReplayTarget.DECISIONS,
    policy_version: Annotated[
        int | None, typer.Option(min=0, help="The policy that decides [default: at each graph the one that did]")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Record what was computed into this folder, then remove the prefix's topics")
    ] = None,
    topics: Annotated[bool, typer.Option("--topics", help="Replay from the installation's topics")] = False,
    run: Runs = None,
    since: Since = None,
    until: Until = None,
    offsets: Offsets = None,
    replication: Annotated[int, typer.Option(min=1, max=10, help="Copies of the replay's topics")] = 1,
    bootstrap: Bootstrap = None,
) -> None:
    """Put a recording through the stages again, under a prefix of its own; live topics and groups are not touched."""
    import tempfile

    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.recording.recording import Recording
    from tamiyo.streams.replay.flow import Flow
    from tamiyo.streams.replay.plan import Plan
    from tamiyo.streams.replay.replayer import Interrupted, Replayer

    if (folder is None) != topics:
        raise ConfigurationError("give a recording's folder, or --topics to replay from the installation's topics")
    chosen = [
        name
        for name, value in (("--run", run), ("--since", since), ("--until", until), ("--offsets", offsets))
        if value
    ]
    if folder is not None and chosen:
        raise ConfigurationError(f"{chosen[0]} chooses from topics; a recording is replayed whole")
    if save is not None and save.exists():
        raise ConfigurationError(f"--save {save}: it is there already")
    kafka, live = settings_of.kafka(bootstrap), settings_of.names()
    plan = Plan(
        Flow.between(level, target), TopicNames(prefix=prefix), _speed(speed), workers, policy_version, replication
    )
    stop = stop_flag()
    with tempfile.TemporaryDirectory(prefix="tamiyo-replay-") as temporary:
        if folder is None:
            # A replay may take as long as the training did; by then the topics may have let go of it.
            folder = Path(temporary) / "recording"
            selection = _selection(None, run, since, until, offsets)
            settings_of.connected_kafka(bootstrap)
            if not _record(folder, kafka, live, selection, stop):
                raise typer.Exit(130)
        recording = Recording(folder)
        if not recording.manifest.complete:
            console.print("this recording was stopped before its end", style="yellow")
        display = _Display(
            recording.count(plan.flow.inputs), recording.count(plan.flow.last.outputs), plan.flow.last.name
        )
        replayer = Replayer(recording, plan, kafka, live, stopped=stop, observer=display)
        settings_of.connected_kafka(bootstrap)
        replayer.check()
        if not workers:
            for name, value in replayer.environment().items():
                console.print(f"export {name}={value}", highlight=False, soft_wrap=True, markup=False)
            stages = " ".join(f"--stage {name}" for name in plan.flow.stages)
            console.print(f"start workers with these: tamiyo worker {stages}", highlight=False, soft_wrap=True)
        try:
            with display.progress:
                result = replayer.run()
        except Interrupted:
            console.print(f"stopped; `tamiyo discard {prefix}` removes what it has made", style="yellow")
            raise typer.Exit(130) from None
    console.print(
        f"complete: {result.published:,} messages replayed in {result.seconds:.1f} s, every stage has drained",
        highlight=False,
    )
    for name, count in result.computed.items():
        console.print(f"  {count:>8,}  {prefix}{name}", highlight=False)
    for name, count in result.rejected.items():
        console.print(f"  {count:>8,}  {prefix}{name}", style="yellow", highlight=False)
    if save is not None:
        from tamiyo.streams.recording.topic_reader import Selection

        wanted = Selection(topics=tuple(topic.name for topic in plan.flow.outputs))
        _record(save, kafka, plan.names, wanted, lambda: False)
        _discard(prefix, kafka)


def diff(
    left: Annotated[str, typer.Argument(help="A recording's folder, or topics:PREFIX (topics: for no prefix)")],
    right: Annotated[str, typer.Argument(help="The same")],
    topic: Annotated[
        list[str] | None, typer.Option(help="Of the catalogue; repeat [default: windows, graphs and decisions]")
    ] = None,
    run: Runs = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A field that may differ, e.g. explanation; repeat for several")
    ] = None,
    bootstrap: Bootstrap = None,
) -> None:
    """Compare what two runs said, byte by byte under each id; exit 1 where they differ."""
    from tamiyo.schemas.topics import BY_NAME
    from tamiyo.streams.replay.compare import COMPARED, compare, side

    chosen = [BY_NAME[name] for name in _topics(topic)] if topic else list(COMPARED)
    one, other = (side(text, lambda: settings_of.connected_kafka(bootstrap)) for text in (left, right))
    with Progress(
        TextColumn("{task.description}"), TextColumn("{task.completed:,} messages"), console=console, transient=True
    ) as progress:
        task = progress.add_task("comparing", total=None)
        found = compare(
            one,
            other,
            chosen,
            runs=run or (),
            ignore=ignore or (),
            progress=lambda count: progress.advance(task, count),
        )
    table = Table("topic", "same", "differ", "only left", "only right", "contradictions")
    for each in found:
        numbers = (each.same, each.differ, each.left_only, each.right_only, each.contradictions)
        table.add_row(each.topic, *(f"{number:,}" for number in numbers))
    console.print(table)
    for each in found:
        if each.first is not None:
            at = each.first
            console.print(
                f"{each.topic} {at.identity} of run {at.run_id} differs first in {at.field}: {at.left} and {at.right}",
                highlight=False, soft_wrap=True, markup=False,
            )  # fmt: skip
    if not all(each.equal for each in found):
        raise typer.Exit(1)
    if not any(each.same for each in found):
        raise ConfigurationError("neither side holds anything to compare")
    console.print(f"the same in every field but {', '.join(ignore)}" if ignore else "the same, to the byte")


def discard(
    prefix: Annotated[str, typer.Argument(help="Prefix of a replay")],
    bootstrap: Bootstrap = None,
) -> None:
    """Remove a replay's topics and consumer groups; an installation's own are refused."""
    if not prefix or prefix == settings_of.names().prefix:
        raise ConfigurationError(f"the prefix {prefix!r} is the installation's own: nothing is removed")
    _discard(prefix, settings_of.connected_kafka(bootstrap))


def _discard(prefix: str, kafka: Any) -> None:
    from tamiyo.streams.replay.cleanup import discard as remove

    made = remove(prefix, kafka, settings_of.names())
    console.print(f"removed {made} topics under {prefix}", highlight=False)


def _record(
    folder: Path, kafka: Any, names: Any, selection: Any, stop: Callable[[], bool], *, follow: bool = False,
    checkpoint_url: str | None = None,
) -> bool:  # fmt: skip
    """Record with a progress bar; return whether everything is there."""
    from tamiyo.streams.recording.recorder import Recorder

    progress = Progress(
        TextColumn("recording"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    task = progress.add_task("recording", total=0)
    total = 0

    def plan(more: int) -> None:
        nonlocal total
        total += more
        progress.update(task, total=total)

    with progress:
        manifest = Recorder(
            folder, kafka, names, selection, follow=follow, checkpoint_url=checkpoint_url,
            on_plan=plan, on_progress=lambda count: progress.advance(task, count),
        ).run(stop)  # fmt: skip
    size = sum(part.size_bytes for part in manifest.parts)
    console.print(
        f"{sum(part.messages for part in manifest.parts):,} messages in {len(manifest.parts)} files of "
        f"{size / 1e6:,.1f} MB in {folder}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if manifest.policy_versions_missing:
        missing = ", ".join(map(str, manifest.policy_versions_missing))
        console.print(
            f"policies that decided are not in the store any more: {missing}; a replay cannot repeat their decisions",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    return manifest.complete


class _Display:
    """A bar for what is published, one for what the last stage says."""

    def __init__(self, total: int, expected: int, last: str) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._in: TaskID = self.progress.add_task("published", total=total)
        # As many as were recorded is what to expect; a recording need not hold any.
        self._out: TaskID = self.progress.add_task(last, total=expected or None)

    def phase(self, description: str) -> None:
        self.progress.console.print(f"{description} ...", highlight=False)

    def published(self, count: int) -> None:
        self.progress.update(self._in, completed=count)

    def computed(self, count: int) -> None:
        self.progress.update(self._out, completed=count)


def _selection(
    topic: list[str] | None, run: list[str] | None, since: str | None, until: str | None, offsets: list[str] | None
) -> Any:
    from tamiyo.streams.recording.topic_reader import Selection

    chosen: dict[str, Any] = {"topics": _topics(topic)} if topic else {}
    first, last = _time_ms("--since", since), _time_ms("--until", until)
    if first is not None and last is not None and first >= last:
        raise ConfigurationError(f"--since {since} does not lie before --until {until}")
    return Selection(runs=tuple(run or ()), since_ms=first, until_ms=last, offsets=_offsets(offsets or []), **chosen)


def _topics(names: list[str]) -> tuple[str, ...]:
    from tamiyo.schemas.topics import BY_NAME

    for name in names:
        if name not in BY_NAME:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
    return tuple(dict.fromkeys(names))


def _offsets(texts: list[str]) -> dict[str, tuple[int | None, int | None]]:
    found: dict[str, tuple[int | None, int | None]] = {}
    for text in texts:
        match = OFFSETS.fullmatch(text)
        if match is None:
            raise ConfigurationError(
                f"--offsets {text}: expected TOPIC:PARTITION=FIRST-LAST, like tamiyo.health.windows:0=10-99"
            )
        _topics([match["place"].rpartition(":")[0]])
        first = int(match["first"]) if match["first"] else None
        after = int(match["last"]) + 1 if match["last"] else None
        if first is not None and after is not None and first >= after:
            raise ConfigurationError(f"--offsets {text}: the first comes after the last")
        found[match["place"]] = (first, after)
    return found


def _time_ms(flag: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{flag} {text}: expected a time like 2026-05-01T10:00 or 2026-05-01T10:00+02:00"
        ) from error
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise ConfigurationError(f"--speed {text}: expected max, or how many times as fast: 1, 100, 0.5")
    return speed
