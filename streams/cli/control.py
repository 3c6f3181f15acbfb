"""`tamiyo control`: standing orders for one run or for all."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tamiyo.schemas.adaptation import ALL_RUNS
from tamiyo.schemas.display import printable, write_json
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RecordError
from tamiyo.streams.cli import options
from tamiyo.streams.cli.options import AsJson, Bootstrap, examples

if TYPE_CHECKING:
    from tamiyo.schemas.adaptation import ControlCommand
    from tamiyo.streams.admin.control import ControlTopic, Edit
    from tamiyo.streams.stages.decisions.orders import StandingOrders

app = typer.Typer(
    no_args_is_help=True,
    help="Show and change the standing orders for a run, or for all runs.\n\n"
    "A command changes one thing and keeps the rest of the order. What the order for all runs or the run's own forbids "
    "is forbidden.",
    epilog=examples(
        "tamiyo control pause mnist1d-0 --reason 'audit'",
        "tamiyo control protect mnist1d-0 --layer conv1",
        "tamiyo control show",
    ),
)

console = Console()
errors = Console(stderr=True)

Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Run that the order is for.", show_default=False)]
AllRuns = Annotated[bool, typer.Option("--all", help="The order for all runs.")]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Reason, recorded with the order. [default: the present reason]")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation of an order for all runs.")]


@app.command(epilog=examples("tamiyo control show", "tamiyo control show mnist1d-0", "tamiyo control show --json"))
def show(run: Run = None, all_runs: AllRuns = False, as_json: AsJson = False, bootstrap: Bootstrap = None) -> None:
    """Show the orders in force, and what they forbid together. Without RUN: all orders."""
    addressee = _addressee(run, all_runs) if run is not None or all_runs else None
    with _control(bootstrap) as control:
        _warn(f"{place} is not an order; it is ignored" for place in control.unreadable)
        rows = [_described(control, each) for each in ([addressee] if addressee else control.orders)]
    if as_json:
        write_json(rows)
        return
    if not rows:
        _print("no orders: everything is allowed")
    for row in rows:
        _print(_line(row["run_id"], row["order"]))
        if row["run_id"] != ALL_RUNS:
            _print(f"  in force: {_forbidden(row['effective'])}")


@app.command(
    epilog=examples(
        "tamiyo control pause mnist1d-0 --reason audit", "tamiyo control pause --all --reason 'maintenance'"
    )
)
def pause(
    run: Run = None,
    all_runs: AllRuns = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Allow no adaptations."""
    from tamiyo.streams.admin.control import paused

    _change("Pause", run, all_runs, paused(True), reason, yes=yes, as_json=as_json, bootstrap=bootstrap)


@app.command(epilog=examples("tamiyo control resume mnist1d-0", "tamiyo control resume --all --yes"))
def resume(
    run: Run = None,
    all_runs: AllRuns = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Allow adaptations again. A dry run goes on, and layers stay protected."""
    from tamiyo.streams.admin.control import paused

    _change("Resume", run, all_runs, paused(False), reason, yes=yes, as_json=as_json, bootstrap=bootstrap)


@app.command("dry-run", epilog=examples("tamiyo control dry-run mnist1d-0", "tamiyo control dry-run mnist1d-0 --end"))
def dry_run(
    run: Run = None,
    all_runs: AllRuns = False,
    end: Annotated[bool, typer.Option("--end", help="Execute adaptations again.")] = False,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Decide and record adaptations without executing them."""
    from tamiyo.streams.admin.control import dry_run as edit

    question = "End the dry run of" if end else "Begin a dry run of"
    _change(question, run, all_runs, edit(not end), reason, yes=yes, as_json=as_json, bootstrap=bootstrap)


@app.command(
    epilog=examples(
        "tamiyo control protect mnist1d-0 --layer conv1 --layer conv2",
        "tamiyo control protect mnist1d-0 --remove conv1",
        "tamiyo control protect --all --layer head",
    )
)
def protect(
    run: Run = None,
    all_runs: AllRuns = False,
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="LAYER", help="Layer that must not be adapted; repeat for several."),
    ] = None,
    removed: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="LAYER", help="Layer that may be adapted again; repeat for several."),
    ] = None,
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Protect layers in addition to those that are protected."""
    from tamiyo.streams.admin.control import protected

    if not layers and not removed:
        raise ConfigurationError("name the layers to protect with --layer, or those to release with --remove")
    if both := set(layers or ()) & set(removed or ()):
        raise ConfigurationError(f"layer {min(both)!r} is given to --layer and to --remove")
    _change(
        "Change the protected layers of",
        run,
        all_runs,
        protected(layers or (), removed or ()),
        reason,
        layers=layers or (),
        removed=removed or (),
        yes=yes,
        as_json=as_json,
        bootstrap=bootstrap,
    )


@app.command(epilog=examples("tamiyo control clear mnist1d-0", "tamiyo control clear --all"))
def clear(
    run: Run = None,
    all_runs: AllRuns = False,
    yes: Yes = False,
    as_json: AsJson = False,
    bootstrap: Bootstrap = None,
) -> None:
    """Remove the order: everything that it forbids is allowed again. Orders for other runs stay."""
    from tamiyo.streams.admin.control import cleared

    _change("Clear the order for", run, all_runs, cleared, "", yes=yes, as_json=as_json, bootstrap=bootstrap)


def _change(
    question: str,
    run: str | None,
    all_runs: bool,
    edit: "Edit",
    reason: str,
    *,
    layers: "list[str] | tuple[str, ...]" = (),
    removed: "list[str] | tuple[str, ...]" = (),
    yes: bool,
    as_json: bool,
    bootstrap: str | None,
) -> None:
    """Confirm, change and print one order; exit status 1 if another operator has undone it."""
    from tamiyo.streams.admin.control import known_runs

    addressee = _addressee(run, all_runs)
    kafka = options.connected_kafka(bootstrap)
    warnings: list[str] = []
    if addressee != ALL_RUNS or layers:
        try:
            warnings += known_runs(addressee, kafka, options.names(), layers=bool(layers)).warnings(addressee, layers)
        except BrokerError as error:
            warnings.append(f"runs and layers were not checked: {error}")
    with _control(bootstrap) as control:
        standing = control.orders.get(addressee)
        present = standing.protected_layers if standing is not None else []
        warnings += [f"layer {each!r} was not protected by this order" for each in removed if each not in present]
        _warn(warnings)
        if addressee == ALL_RUNS and not yes:
            _confirm(question)
        change = control.change(addressee, edit, reason)
        row = {**_described(control, addressee), "changed": change.published}
        others = [each for each in control.orders.items() if addressee == ALL_RUNS and each[0] != ALL_RUNS]
    warnings += change.notes
    _warn(change.notes)
    if change.overruled:
        warnings.append("the newest order for it has undone the change; see above, and repeat the command if needed")
        _warn(warnings[-1:])
    if as_json:
        write_json({**row, "before": _values(change.before), "warnings": warnings})
    else:
        _print(("" if change.published else "nothing to change: ") + _line(addressee, row["order"]))
        if addressee != ALL_RUNS:
            _print(f"  in force: {_forbidden(row['effective'])}")
        for run_id, order in others:
            _print(f"  {_line(run_id, _values(order))}")
    if change.overruled:
        raise typer.Exit(1)


def _addressee(run: str | None, all_runs: bool) -> str:
    """Return whom an order is for; raises ConfigurationError where that is not clear or not a run_id."""
    from tamiyo.schemas.adaptation import ControlCommand
    from tamiyo.schemas.codec import validate

    if (run is None) != all_runs:
        raise ConfigurationError("name the run, or give --all for all runs" + (", not both" if all_runs else ""))
    addressee = ALL_RUNS if run is None else run
    try:
        validate({"run_id": addressee, "time_ms": 0}, ControlCommand)
    except RecordError as error:
        raise ConfigurationError(
            f"{addressee!r} is not a run_id: expected up to 200 letters, digits and _ . : / -, "
            "beginning with a letter, a digit or _"
        ) from error
    return addressee


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigurationError(
            "an order for all runs needs a confirmation, and there is no terminal to ask at: add --yes"
        )
    typer.confirm(f"{question} all runs?", abort=True, err=True)


def _control(bootstrap: str | None) -> "ControlTopic":
    from tamiyo.streams.admin.control import ControlTopic

    return ControlTopic(options.connected_kafka(bootstrap), options.names())


def _described(control: "ControlTopic", addressee: str) -> dict[str, Any]:
    """Return an order, and what is in force for its run, as JSON values."""
    from tamiyo.streams.stages.decisions.orders import StandingOrders

    orders = control.orders
    combined = StandingOrders.of(
        orders[each] for each in dict.fromkeys((ALL_RUNS, addressee)) if orders.get(each) is not None
    )
    return {"run_id": addressee, "order": _values(orders.get(addressee)), "effective": _effective(combined)}


def _values(order: "ControlCommand | None") -> dict[str, Any] | None:
    return order.model_dump(mode="json") if order is not None else None


def _effective(orders: "StandingOrders") -> dict[str, Any]:
    return {
        "paused": orders.paused,
        "dry_run": orders.dry_run,
        "protected_layers": sorted(orders.protected),
        "reason": orders.reason,
    }


def _line(addressee: str, order: dict[str, Any] | None) -> str:
    whose = "all runs" if addressee == ALL_RUNS else addressee
    if order is None:
        return f"{whose}: no order"
    time = datetime.fromtimestamp(order["time_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    reason = f": {order['reason']}" if order["reason"] else ""
    by = f" by {order['issued_by']}" if order["issued_by"] else ""
    return f"{whose}: {_forbidden(order)} (given{by} at {time} UTC{reason})"


def _forbidden(order: dict[str, Any]) -> str:
    parts = [
        *(["paused"] * order["paused"]),
        *(["dry run"] * order["dry_run"]),
        *([f"protected {', '.join(order['protected_layers'])}"] * bool(order["protected_layers"])),
    ]
    return "; ".join(parts) or "everything allowed"


def _warn(warnings: Any) -> None:
    for each in warnings:
        errors.print(
            printable(f"tamiyo: warning: {each}"), style="yellow", highlight=False, soft_wrap=True, markup=False
        )


def _print(text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
