"""Commands of other packages: entry points of the group `tamiyo.commands`, each a typer app.

An entry point names the extra that its command needs (`module:app [extra]`). A single command may name its panel of
`tamiyo --help` (`rich_help_panel`); all others are the laboratory's.

As typer itself has it, an app with one command and no callback is that command; any other is a group of commands. A
plug-in's module must import what it runs when it runs it, as all commands do, so that `--help` is quick.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import typer

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options

GROUP = "tamiyo.commands"


def register(app: typer.Typer) -> None:
    """Add every installed plug-in to the command line; one that cannot be imported explains itself when run."""
    taken = {group.name for group in app.registered_groups} | {
        command.name or getattr(command.callback, "__name__", None) for command in app.registered_commands
    }
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        if entry.name in taken:
            continue  # a plug-in never replaces a command of ours, nor another plug-in
        taken.add(entry.name)
        try:
            _add(app, entry.name, entry.load())
        except ImportError as error:
            _add_broken(app, entry, error)


def _add(app: typer.Typer, name: str, plugin: typer.Typer) -> None:
    commands = plugin.registered_commands
    if len(commands) != 1 or plugin.registered_groups or plugin.registered_callback is not None:
        app.add_typer(plugin, name=name, rich_help_panel=options.LABORATORY)
        return
    (command,) = commands
    assert command.callback is not None
    own = command.rich_help_panel  # typer has a placeholder where a command names none
    panel = own if isinstance(own, str) else options.LABORATORY
    app.command(name, help=command.help, epilog=command.epilog, rich_help_panel=panel)(command.callback)


def _add_broken(app: typer.Typer, entry: EntryPoint, error: ImportError) -> None:
    app.command(
        entry.name,
        rich_help_panel=options.MISSING,
        help=f"Not available: it needs {error.name}.",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        epilog=options.examples(f"tamiyo {entry.name}"),
    )(_refusal(entry, error))


def _refusal(entry: EntryPoint, error: ImportError) -> Callable[[], None]:
    def refuse() -> None:
        needed = f"; install esper-tamiyo[{','.join(entry.extras)}]" if entry.extras else ""
        raise ConfigurationError(f"`tamiyo {entry.name}` cannot be loaded: {error}{needed}") from error

    return refuse
