"""`tamiyo config`: the settings that apply here, and what each means."""

import sys
from typing import Annotated

import typer

from tamiyo.schemas.display import printable, write_json
from tamiyo.streams.cli.options import AsJson, examples

app = typer.Typer(
    no_args_is_help=True,
    help="Show the settings. A flag wins over the environment, the environment over the file (`--config`), the file "
    "over the default.",
)


@app.command(epilog=examples("tamiyo config show --changed", "tamiyo --config tamiyo.toml config show --json"))
def show(
    changed: Annotated[bool, typer.Option("--changed", help="Only settings that differ from the default.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the value of each setting and where it comes from; secrets are hidden.

    Exit status 1 if a setting is wrong.
    """
    from tamiyo.streams.admin.configuration import effective, unknown_variables

    found = [each for each in effective() if each.changed or not changed]
    for sentence in unknown_variables():
        sys.stderr.write(f"tamiyo: {sentence}\n")
    if as_json:
        write_json([each.as_dict() for each in found])
        return
    widths = max((len(each.variable) for each in found), default=0), len("environment")
    for each in found:
        value = "unset" if each.value is None else printable(each.value)
        sys.stdout.write(f"{each.variable:<{widths[0]}}  {each.source:<{widths[1]}}  {value}\n")


@app.command(epilog=examples("tamiyo config reference", "tamiyo config reference --toml > tamiyo.toml"))
def reference(
    as_json: AsJson = False,
    toml: Annotated[bool, typer.Option("--toml", help="Print a file with every setting, as a template.")] = False,
) -> None:
    """List every setting: its variable, type, default and meaning."""
    from tamiyo.streams.admin.configuration import classes, described, toml_template

    if toml:
        sys.stdout.write(toml_template())
        return
    found = [each for cls in classes() for each in described(cls)]
    if as_json:
        write_json([each.as_dict() for each in found])
        return
    for each in found:
        default = "unset" if each.default is None else each.default
        sys.stdout.write(f"{each.variable}\n    {each.type}; default: {default}\n    {each.meaning}\n")
