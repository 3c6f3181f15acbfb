"""`tamiyo replay` and `tamiyo discard`."""

import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tamiyo.schemas.display import write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, Runs, examples
from tamiyo.streams.cli.record import Offsets, Since, Until, record_to, selection
from tamiyo.streams.process.interrupts import stop_flag
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(
        rich_help_panel=options.REPLAY,
        epilog=examples(
            "tamiyo replay recordings/monday --prefix replay1.",
            "tamiyo replay one --prefix slow. --speed 1 --workers 4",
            "tamiyo replay --topics --since 2026-05-01 --prefix p2. --from graphs --policy-version 12 --save judged",
        ),
    )(replay)
    app.command(rich_help_panel=options.REPLAY, epilog=examples("tamiyo discard replay1."))(discard)


def replay(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a recording; not with --topics.")] = None,
    prefix: Annotated[str, typer.Option(metavar="PREFIX", help="Topic prefix of this replay, e.g. replay1.")] = "",
    speed: Annotated[
        str, typer.Option(metavar="X", help="Multiple of the recorded speed, or max: as fast as possible.")
    ] = "max",
    workers: Annotated[
        int, typer.Option(min=0, max=64, metavar="N", help="Worker processes; 0: you start them yourself.")
    ] = 1,
    source: Annotated[
        ReplaySource, typer.Option("--from", help="Topics to take from the recording.")
    ] = ReplaySource.TELEMETRY,
    target: Annotated[ReplayTarget, typer.Option("--to", help="Last topics to recompute.")] = ReplayTarget.DECISIONS,
    policy_version: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Policy that makes all decisions. [default: the recorded one of each graph]"
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            callback=options.check_folder,
            help="Record the results into this folder, then remove the replay's topics.",
        ),
    ] = None,
    topics: Annotated[bool, typer.Option("--topics", help="Replay from the installation's topics.")] = False,
    run: Runs = None,
    since: Since = None,
    until: Until = None,
    offsets: Offsets = None,
    replication: Annotated[
        int, typer.Option(min=1, max=10, metavar="N", help="Replicas of the replay's partitions.")
    ] = 1,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Run the stages on a recording again, under its own topic prefix.

    The installation's topics and consumer groups are not changed.
    """
    from tamiyo.schemas.client.registry import RegistrySettings
    from tamiyo.schemas.kafka import TopicNames
    from tamiyo.streams.recording.recording import Recording
    from tamiyo.streams.recording.topic_reader import Selection
    from tamiyo.streams.replay.flow import Flow
    from tamiyo.streams.replay.plan import Plan
    from tamiyo.streams.replay.subjects import ReplaySubjects

    if (folder is None) != topics:
        raise ConfigurationError("give a recording's folder, or --topics to replay from the installation's topics")
    selecting = {"--run": run, "--since": since, "--until": until, "--offsets": offsets}
    chosen = next((flag for flag, value in selecting.items() if value), None)
    if folder is not None and chosen is not None:
        raise ConfigurationError(f"{chosen} selects from topics; a recording is replayed whole")
    if save is not None and save.exists():
        raise ConfigurationError(f"--save {save} exists already; choose another folder")
    plan = Plan(
        Flow.between(source, target), TopicNames(prefix=prefix), _speed(speed), workers, policy_version, replication
    )
    stop, out = stop_flag(), options.narrator(as_json)
    with ExitStack() as stack:
        recording = None if folder is None else Recording(folder)
        kafka = options.connected_kafka(bootstrap)
        if recording is None:
            # A replay may take as long as the training did; by then the topics' records may have expired.
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tamiyo-replay-")))
            selected = selection(None, run, since, until, offsets)
            if not record_to(temporary / "recording", kafka, options.names(), selected, stop, out).complete:
                raise typer.Exit(130)
            recording = Recording(temporary / "recording")
        result = _replay(recording, plan, kafka, stop, out)
    out.print(
        f"complete: {result.published:,} messages replayed in {result.seconds:.1f} s, all stages drained",
        highlight=False,
    )
    for name, count in result.computed.items():
        out.print(f"  {count:>8,}  {prefix}{name}", highlight=False)
    for name, count in result.rejected.items():
        out.print(f"  {count:>8,}  {prefix}{name}", style="yellow", highlight=False)
    if save is not None:
        outputs = Selection(topics=tuple(topic.name for topic in plan.flow.outputs))
        record_to(save, kafka, plan.names, outputs, lambda: False, out)
        needed = ReplaySubjects(plan.names, RegistrySettings()).missing_at(options.names(), plan.flow.outputs)
        removed = _discard(prefix, kafka, keep_subjects=bool(needed))
        out.print(f"removed {removed} topics under {prefix}", highlight=False)
        if needed:
            out.print(
                f"the schemas under {prefix} stay registered: {save} refers to that of {needed[0]}, which the "
                f"installation has not registered; `tamiyo discard {prefix}` removes them",
                highlight=False,
                soft_wrap=True,
            )
    if as_json:
        write_json({"prefix": prefix, **asdict(result), "saved": None if save is None else str(save)})


def discard(
    prefix: Annotated[str, typer.Argument(help="Topic prefix of a replay.")],
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Remove the topics, consumer groups and registered schemas of a replay; an installation's are refused."""
    if prefix in ("", options.names().prefix):
        raise ConfigurationError(f"the prefix {prefix!r} is the installation's own: nothing is removed")
    removed = _discard(prefix, options.connected_kafka(bootstrap))
    if as_json:
        write_json({"prefix": prefix, "removed": removed})
    else:
        options.narrator(False).print(f"removed {removed} topics under {prefix}", highlight=False)


def _replay(recording: Any, plan: Any, kafka: Any, stop: Any, out: Console) -> Any:
    """Check and run a replay with progress bars; return its result."""
    from tamiyo.streams.replay.replayer import Interrupted, Replayer

    if not recording.manifest.complete:
        out.print("this recording was stopped before its end", style="yellow")
    last = plan.flow.last
    display = _Display(recording.count(plan.flow.inputs), recording.count(last.outputs), last.name, out)
    replayer = Replayer(recording, plan, kafka, options.names(), stopped=stop, observer=display)
    replayer.check()
    if not plan.workers:
        for name, value in replayer.environment().items():
            out.print(f"export {name}={value}", highlight=False, soft_wrap=True, markup=False)
        stages = " ".join(f"--stage {name}" for name in plan.flow.stages)
        out.print(f"start workers with these: tamiyo worker {stages}", highlight=False, soft_wrap=True)
    try:
        with display.progress:
            return replayer.run()
    except Interrupted:
        out.print(f"stopped; `tamiyo discard {plan.names.prefix}` removes its topics", style="yellow")
        raise typer.Exit(130) from None


def _discard(prefix: str, kafka: Any, *, keep_subjects: bool = False) -> int:
    from tamiyo.streams.replay.cleanup import discard as remove

    return remove(prefix, kafka, options.names(), keep_subjects=keep_subjects)


class _Display:
    """A bar for the published messages, and one for the outputs of the last stage."""

    def __init__(self, total: int, expected: int, last: str, out: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out
        )
        self._published: TaskID = self.progress.add_task("published", total=total)
        # As many as were recorded are expected; a recording need not hold any.
        self._computed: TaskID = self.progress.add_task(last, total=expected or None)

    def phase(self, description: str) -> None:
        self.progress.console.print(f"{description} ...", highlight=False)

    def published(self, count: int) -> None:
        self.progress.update(self._published, completed=count)

    def computed(self, count: int) -> None:
        self.progress.update(self._computed, completed=count)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise ConfigurationError(f"--speed {text}: expected max, or a multiple of the recorded speed: 1, 100, 0.5")
    return speed
