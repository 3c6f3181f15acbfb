"""`tamiyo dlq`: inspects dead letters and republishes them."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamiyo.schemas.display import narrow, printable, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Inspect the messages that stages rejected or that came too late, and republish them.",
    epilog=examples(
        "tamiyo dlq list",
        "tamiyo dlq show telemetry.cache.hit_rates -n 3",
        "tamiyo dlq show tamiyo.health.signals.late",
        "tamiyo dlq redrive --reason DecodeError --dry-run",
    ),
)

console = Console()

TopicArgument = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=options.complete_dead_letter_topics,
        help="Topics, or only the rejected (.dlq) or late (.late) messages of a topic. [default: all]",
        show_default=False,
    ),
]
Reason = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Only dead letters whose reason contains this, ignoring case.")
]
At = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PLACE",
        help="Only the dead letter at PARTITION:OFFSET of one .dlq or .late topic (.dlq unless named); repeat for "
        "several.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("-n", min=1, metavar="N", help="At most N dead letters of each partition, oldest first.")
]
RESULTS = {
    "sent": "sent back",
    "found": "sent back by an earlier redrive that crashed",
    "done": "sent back meanwhile by another redrive",
    "claimed": "claimed by another redrive in progress; call again in a minute",
}


@app.command("list", epilog=examples("tamiyo dlq list", "tamiyo dlq list tamiyo.health.signals --json"))
def list_dead_letters(topics: TopicArgument = None, as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Count the dead letters of each topic by reason, and how many of them were sent back."""
    from tamiyo.streams.admin.topic_tail import source_name

    chosen = _topics(topics)
    with _dead_letters(options.connected_kafka(bootstrap)) as dead_letters:
        partitions = dead_letters.partitions(chosen)
    counted: dict[tuple[str, str], Counter[str]] = {}
    for partition in partitions:
        for each in partition.dead_letters:
            count = counted.setdefault((partition.letters, each.kind), Counter())
            count["letters"] += 1
            count["redriven"] += each.offset in partition.redriven
    rows = [
        {
            "topic": source_name(letters),
            "late": letters.endswith(".late"),
            "reason": kind,
            "letters": count["letters"],
            "redriven": count["redriven"],
        }
        for (letters, kind), count in sorted(counted.items(), key=lambda each: (each[0][0], -each[1]["letters"]))
    ]
    if as_json:
        write_json(rows)
        return
    if not rows:
        console.print("no dead letters")
        return
    console.print(_table(rows))


@app.command(
    epilog=examples(
        "tamiyo dlq show telemetry.cache.hit_rates -n 3",
        "tamiyo dlq show --reason poison --json",
        "tamiyo dlq show tamiyo.health.signals --at 2:17",
    )
)
def show(
    topics: TopicArgument = None,
    reason: Reason = None,
    at: At = None,
    limit: Limit = None,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Print dead letters: reason, source, headers, bytes, and the record if the bytes decode.

    Bytes are escaped, or in hex with --json.
    """
    wanted = _filter(topics, reason, at)
    chosen = _topics(topics, at)
    with _dead_letters(options.connected_kafka(bootstrap)) as dead_letters:
        partitions = dead_letters.partitions(chosen)
    for partition in partitions:
        for each in [each for each in partition.dead_letters if wanted(each)][:limit]:
            redriven = each.offset in partition.redriven
            if as_json:
                sys.stdout.write(json.dumps({**each.described(), "redriven": redriven}) + "\n")
            else:
                sys.stdout.write(each.text() + ("\n  sent back" if redriven else "") + "\n")


@app.command(
    epilog=examples(
        "tamiyo dlq redrive --dry-run",
        "tamiyo dlq redrive telemetry.cache.hit_rates --yes",
        "tamiyo dlq redrive --reason topology -n 10",
    )
)
def redrive(
    topics: TopicArgument = None,
    reason: Reason = None,
    at: At = None,
    limit: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Republish dead letters to the topics they were rejected from, each once, however often this is called.

    Key, bytes and the producer's headers are unchanged. Correct the cause first: what a stage still rejects becomes a
    new dead letter. What was too large to keep stays, and so does what made a window, a graph or a reward that was too
    large: it is made of several records. Exit status 1 if another redrive is in progress.
    """
    from tamiyo.streams.admin.redrive import Redrive

    def report(text: str) -> None:
        options.narrator(as_json).print(printable(text), highlight=False, soft_wrap=True, markup=False)

    wanted = _filter(topics, reason, at)
    chosen = _topics(topics, at)
    kafka = options.connected_kafka(bootstrap)
    with _dead_letters(kafka) as dead_letters:
        partitions = dead_letters.partitions(chosen, report)
        matching = [(each, [one for one in each.waiting if wanted(one)]) for each in partitions]
        selected = [(each, [one for one in found if one.sendable][:limit]) for each, found in matching]
        if without := sum(not one.sendable for _, found in matching for one in found):
            report(f"{without:>7,} stay: sent back, they would change nothing; `tamiyo dlq show` names the reason")
        counts = Counter((each.topic.name, each.kind) for _, batch in selected for each in batch)
        total = sum(counts.values())
        for (topic, kind), count in sorted(counts.items()):
            report(f"{count:>7,} to {topic}: {kind}")
        if not total:
            report("nothing to send back")
        elif dry_run:
            report(f"{total:,} dead letters would be sent back; nothing was done")
        elif not yes:
            typer.confirm(f"Send {total:,} dead letters back?", abort=True, err=as_json)
        done: Counter[str] = Counter()
        if total and not dry_run:
            sending = Redrive(dead_letters, kafka)
            with options.resumable("give the command again in a minute: nothing is sent back twice", errors=False):
                for partition, batch in selected:
                    for result, count in sending.send(partition, batch):
                        done[result] += count
                        report(f"{done.total():,} of {total:,}: {partition.letters}/{partition.partition}")
    if as_json:
        listed = [{"topic": topic, "reason": kind, "letters": n} for (topic, kind), n in sorted(counts.items())]
        write_json({"dry_run": dry_run, "selected": listed, "results": {each: done[each] for each in RESULTS}})
    elif done:
        report(", ".join(f"{done[result]:,} {text}" for result, text in RESULTS.items() if done[result]))
    if done["claimed"]:
        raise typer.Exit(1)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    table.add_column("topic", overflow="fold")
    table.add_column("reason")
    for column in ("dead letters", "sent back"):
        table.add_column(column, justify="right")
    for row in rows:
        topic = f"{row['topic']}.late" if row["late"] else row["topic"]
        cells = (topic, row["reason"], f"{row['letters']:,}", f"{row['redriven']:,}")
        table.add_row(*(Text(printable(each)) for each in cells))
    return narrow(table)


def _dead_letters(kafka: Any) -> Any:
    from tamiyo.streams.admin.dead_letters import DeadLetters

    return DeadLetters(kafka, options.names())


def _topics(topics: Sequence[str] | None, at: Sequence[str] | None = None) -> list[str]:
    from tamiyo.streams.admin.dead_letters import chosen

    found = chosen(options.names(), topics or ())
    return found[:1] if at else found  # a topic's .dlq comes before its .late


def _filter(topics: Sequence[str] | None, reason: str | None, at: Sequence[str] | None) -> Callable[[Any], bool]:
    """Return whether a dead letter matches the options."""
    places: set[tuple[int, int]] = set()
    for text in at or ():
        partition, _, offset = text.partition(":")
        if not (partition.isdigit() and offset.isdigit()):
            raise ConfigurationError(f"--at {text}: expected PARTITION:OFFSET, as printed by `tamiyo dlq show`")
        places.add((int(partition), int(offset)))
    if places and len(topics or ()) != 1:
        raise ConfigurationError("--at needs exactly one topic")

    def wanted(dead_letter: Any) -> bool:
        matches = reason is None or reason.casefold() in dead_letter.reason.casefold()
        return matches and (not places or (dead_letter.partition, dead_letter.offset) in places)

    return wanted
