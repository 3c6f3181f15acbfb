"""`tamiyo dlq`: look at what stages set aside, and send it back."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamiyo.schemas.display import printable
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.cli import options as settings_of
from tamiyo.streams.cli.options import Bootstrap

app = typer.Typer(
    no_args_is_help=True,
    help="Look at the messages that stages could not use, and send them back.",
    epilog="Examples: `tamiyo dlq list` · `tamiyo dlq show telemetry.cache.hit_rates -n 3` · "
    "`tamiyo dlq redrive --reason DecodeError --dry-run`",
)

console = Console()

TopicArgument = Annotated[list[str] | None, typer.Argument(help="Topics, with or without .dlq [default: all]")]
Reason = Annotated[str | None, typer.Option(help="Only letters whose reason contains this, in any case")]
At = Annotated[list[str] | None, typer.Option(help="Only the letter at PARTITION:OFFSET of one topic; repeat")]
Limit = Annotated[int | None, typer.Option("-n", min=1, help="No more than so many, the oldest of each partition")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON")]


def _opened(bootstrap: str | None) -> tuple[Any, KafkaSettings]:
    from tamiyo.streams.admin.dead_letters import DeadLetters

    kafka = settings_of.connected_kafka(bootstrap)
    return DeadLetters(kafka, settings_of.names()), kafka


def _chosen(topics: Sequence[str] | None) -> Any:
    from tamiyo.streams.admin.dead_letters import chosen

    return chosen(settings_of.names(), topics or ())


def _wanted(topics: Sequence[str] | None, reason: str | None, at: Sequence[str] | None) -> Callable[[Any], bool]:
    """Return whether a letter is one of those asked for."""
    places: set[tuple[int, int]] = set()
    for text in at or ():
        partition, _, offset = text.partition(":")
        if not (partition.isdigit() and offset.isdigit()):
            raise ConfigurationError(f"--at {text}: expected PARTITION:OFFSET, as `tamiyo dlq show` names it")
        places.add((int(partition), int(offset)))
    if places and len(topics or ()) != 1:
        raise ConfigurationError("--at needs the one topic that it is about")

    def wanted(letter: Any) -> bool:
        named = reason is None or reason.casefold() in letter.reason.casefold()
        return named and (not places or (letter.partition, letter.offset) in places)

    return wanted


@app.command("list", epilog="Examples: `tamiyo dlq list` · `tamiyo dlq list tamiyo.health.signals --json`")
def list_letters(topics: TopicArgument = None, as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Count the dead letters of each topic by reason, and how many of them have gone back."""
    chosen = _chosen(topics)
    letters, _ = _opened(bootstrap)
    with letters:
        boxes = letters.partitions(chosen)
    counted: dict[tuple[str, str], Counter[str]] = {}
    for box in boxes:
        for letter in box.dead_letters:
            count = counted.setdefault((box.topic.name, letter.kind), Counter())
            count["letters"] += 1
            count["redriven"] += letter.offset in box.redriven
    rows = [
        {"topic": topic, "reason": kind, "letters": count["letters"], "redriven": count["redriven"]}
        for (topic, kind), count in sorted(counted.items(), key=lambda each: (each[0][0], -each[1]["letters"]))
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    if not rows:
        console.print("no dead letters")
        return
    table = Table("topic", "reason", "letters", "redriven")
    for row in rows:
        table.add_row(*(Text(printable(str(each))) for each in row.values()))
    console.print(table)


@app.command(
    epilog="Examples: `tamiyo dlq show telemetry.cache.hit_rates -n 3` · `tamiyo dlq show --reason poison --json` · "
    "`tamiyo dlq show tamiyo.health.signals --at 2:17`"
)
def show(
    topics: TopicArgument = None,
    reason: Reason = None,
    at: At = None,
    limit: Limit = None,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Show dead letters: why, from where, their bytes (escaped; in hex with --json), and the record if they are one."""
    wanted = _wanted(topics, reason, at)
    chosen = _chosen(topics)
    letters, _ = _opened(bootstrap)
    with letters:
        boxes = letters.partitions(chosen)
    for box in boxes:
        for letter in [each for each in box.dead_letters if wanted(each)][:limit]:
            redriven = letter.offset in box.redriven
            if as_json:
                sys.stdout.write(json.dumps({**letter.described(), "redriven": redriven}) + "\n")
            else:
                sys.stdout.write(letter.text() + ("\n  redriven" if redriven else "") + "\n")


@app.command(
    epilog="Examples: `tamiyo dlq redrive --dry-run` · `tamiyo dlq redrive telemetry.cache.hit_rates --yes` · "
    "`tamiyo dlq redrive --reason 'topology' -n 10`"
)
def redrive(
    topics: TopicArgument = None,
    reason: Reason = None,
    at: At = None,
    limit: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")] = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Publish dead letters to the topics they came from, with their key and bytes; each once, however often called.

    First mend what made stages set them aside: what still cannot be used comes back as a new dead letter.
    """
    from tamiyo.streams.admin.redrive import Redrive

    wanted = _wanted(topics, reason, at)
    chosen = _chosen(topics)
    letters, kafka = _opened(bootstrap)
    with letters:
        boxes = letters.partitions(chosen, _say)
        selected = [(box, [each for each in box.waiting if wanted(each)][:limit]) for box in boxes]
        counts = Counter((each.topic.name, each.kind) for _, batch in selected for each in batch)
        total = sum(counts.values())
        for (topic, kind), count in sorted(counts.items()):
            _say(f"{count:>7,} to {topic}: {kind}")
        if not total:
            _say("nothing to send back")
            return
        if dry_run:
            _say(f"{total:,} letters would go back; nothing was done")
            return
        if not yes:
            typer.confirm(f"Send {total:,} letters back?", abort=True)
        done: Counter[str] = Counter()
        sending = Redrive(letters, kafka)
        for box, batch in selected:
            for what, count in sending.send(box, batch):
                done[what] += count
                _say(f"{done.total():,} of {total:,}: {box.topic.name}/{box.partition}")
    words = {
        "sent": "sent back",
        "found": "had gone back by a call that did not end",
        "done": "went back meanwhile, by another call",
        "claimed": "left to another call that is at it; call again in a minute",
    }
    _say(", ".join(f"{done[what]:,} {words[what]}" for what in words if done[what]))
    if done["claimed"]:
        raise typer.Exit(1)


def _say(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
