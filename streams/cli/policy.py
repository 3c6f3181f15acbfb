"""`tamiyo policy`: lists the versions of a policy and steers which of them decide."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamiyo.schemas.display import printable, write_json
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples

if TYPE_CHECKING:
    from tamiyo.schemas.learning import PolicyCheckpoint
    from tamiyo.streams.admin.policies import PolicyVersions

app = typer.Typer(
    no_args_is_help=True,
    help="List the versions of the learned policy, and pin, roll back or freeze them.",
    epilog=examples("tamiyo policy list", "tamiyo policy rollback --reason 'rewards fell'", "tamiyo policy pin 41"),
)

console = Console()

Version = Annotated[int, typer.Argument(min=0, help="Version of the policy, as listed.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Reason, recorded with the order.")]


@app.command("list", epilog=examples("tamiyo policy list", "tamiyo policy list -n 100 --json"))
def list_versions(
    limit: Annotated[int, typer.Option("-n", min=1, metavar="N", help="At most N versions, newest first.")] = 20,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """List the stored versions, newest first: status, time, experiences, updates, mean reward."""
    policies = _policies(bootstrap)
    versions = policies.list(limit)
    if as_json:
        write_json([each.described() for each in versions])
        return
    if not versions:
        console.print("nothing released yet")
        return
    # Without frames it fits into 80 columns.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("version", "status", "released (UTC)", "experiences", "updates", "reward"):
        table.add_column(name, no_wrap=True)
    for each in versions:
        row = each.described()
        marks = [each.status, *(["decides"] * each.decides), *(["pinned"] * each.pinned)]
        table.add_row(
            str(each.version),
            Text(", ".join(marks)),
            _time(row["time_ms"])[:16],  # to the minute
            *(("-" if row[name] is None else f"{row[name]:,}") for name in ("experiences", "updates")),
            "-" if row["mean_reward"] is None else f"{row['mean_reward']:+.3f}",
        )
    console.print(table)
    if policies.frozen:
        console.print("the learner is frozen; `tamiyo policy freeze --thaw` lets it go on", highlight=False)


@app.command(epilog=examples("tamiyo policy show 41", "tamiyo policy show 41 --json"))
def show(version: Version, as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Show one version: origin, metrics, and the verdicts of its release gates. Exit status 1 if it is corrupt."""
    found = _policies(bootstrap).show(version)
    header = found.header
    if as_json:
        details = header.model_dump(mode="json") if header is not None else None
        write_json({**found.described(), "header": details})
    else:
        for name, value in found.described().items():
            _print(f"{name.replace('_', ' '):<16}{_time(value) if name == 'time_ms' else value}")
        if header is not None:
            for gate in header.release.gates:
                _print(f"gate {gate.gate}: {gate.verdict}: {gate.reason}")
            for gate in header.release.refused:
                _print(f"refused before it: gate {gate.gate}: {gate.reason}")
            for name, number in sorted(header.metrics.items()):
                _print(f"{name:<32}{number:.5g}")
    if header is None:
        raise typer.Exit(1)


@app.command(
    epilog=examples("tamiyo policy pin 41 --reason 'release freeze'", "tamiyo policy pin --release"),
)
def pin(
    version: Annotated[int | None, typer.Argument(min=0, help="Version that decides from now on.")] = None,
    release: Annotated[bool, typer.Option("--release", help="Follow the newest release again.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Make every worker decide with one version, whatever the learner releases. Replaces an earlier pin.

    The learner goes on learning and releasing from the pinned version's rewards; freeze it too if it should not.
    """
    if (version is None) != release:
        raise ConfigurationError("give the version to pin, or --release to end the pin")
    policies = _policies(bootstrap)
    if version is None:
        announced = policies.unpin(reason)
        words = "no version is pinned any more: decisions follow the releases"
    else:
        announced = policies.pin(version, reason)
        words = f"version {version} is pinned; `tamiyo policy pin --release` ends it"
    _announce(announced, words, as_json)


@app.command(
    epilog=examples("tamiyo policy rollback", "tamiyo policy rollback --to 38 --reason 'mean reward fell since 39'")
)
def rollback(
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            min=0,
            metavar="VERSION",
            help="Version to return to. [default: the last tested one, else the parent]",
        ),
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Take back the newest version, and all after the one returned to.

    Workers step back at once. The learner continues from the version returned to, and releases it under a new number.
    """
    policies = _policies(bootstrap)
    announced = policies.roll_back(to, reason)
    words = f"version {announced.version} is rolled back: decisions return to version {announced.fallback_version}"
    _announce(announced, words, as_json)
    if policies.pinned is not None and not as_json:
        _print(f"version {policies.pinned} is pinned: until the pin is released, decisions stay with it")


@app.command(epilog=examples("tamiyo policy freeze --reason 'audit'", "tamiyo policy freeze --thaw"))
def freeze(
    thaw: Annotated[bool, typer.Option("--thaw", help="Let the learner go on.")] = False,
    reason: Reason = "",
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Keep the learner from learning and releasing. It goes on reading experiences into its replay memory."""
    announced = _policies(bootstrap).freeze(not thaw, reason)
    words = "the learner goes on" if thaw else "the learner is frozen; `tamiyo policy freeze --thaw` lets it go on"
    _announce(announced, words, as_json)


def _announce(announced: "PolicyCheckpoint", words: str, as_json: bool) -> None:
    if as_json:
        write_json(announced.model_dump(mode="json"))
    else:
        _print(words)


def _policies(bootstrap: str | None) -> "PolicyVersions":
    from tamiyo.streams.admin.policies import PolicyVersions
    from tamiyo.streams.admin.store_mark import require_own_stores
    from tamiyo.streams.settings import LearnerSettings

    settings, names = LearnerSettings(), options.names()
    kafka = options.connected_kafka(bootstrap)
    require_own_stores({settings.checkpoint_url: False}, kafka, names)
    return PolicyVersions(settings.policy, settings.checkpoint_url, kafka, names)


def _time(time_ms: int | None) -> str:
    return "-" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _print(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
