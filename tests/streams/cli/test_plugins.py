"""Commands of other packages, found through entry points."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
import typer

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import plugins

extra = typer.Typer(help="A plug-in.")


@extra.command("go")
def go() -> None:
    """Do nothing."""


@extra.command("stay")
def stay() -> None:
    """Do nothing either."""


single = typer.Typer()
counted: list[int] = []


@single.command(epilog="An example.")
def measure(count: int) -> None:
    """Count."""
    counted.append(count)


def made(monkeypatch: pytest.MonkeyPatch, entries: Sequence[tuple[str, str]]) -> typer.Typer:
    """Return a command line with one command, `own`, and the plug-ins."""
    app = typer.Typer()
    app.command("own")(lambda: None)
    found = [EntryPoint(name, value, plugins.GROUP) for name, value in entries]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == plugins.GROUP else [])
    plugins.register(app)
    return app


def run(app: typer.Typer, *arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_a_plug_in_is_a_group_of_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    app = made(monkeypatch, [("extra", f"{__name__}:extra")])
    group = typer.main.get_command(app)
    assert sorted(group.commands) == ["extra", "own"]  # type: ignore[attr-defined]
    run(app, "extra", "go")


def test_a_plug_in_with_one_command_is_that_command(monkeypatch: pytest.MonkeyPatch) -> None:
    app = made(monkeypatch, [("measure", f"{__name__}:single")])
    run(app, "measure", "3")
    assert counted == [3]
    command = typer.main.get_command(app).commands["measure"]  # type: ignore[attr-defined]
    assert (command.help, command.epilog) == ("Count.", "An example.")


def test_a_plug_in_replaces_no_command_and_no_other_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    app = made(monkeypatch, [("own", f"{__name__}:extra"), ("extra", f"{__name__}:extra"), ("extra", "no.such:app")])
    assert [each.name for each in app.registered_groups] == ["extra"]
    assert len(app.registered_commands) == 1


def test_a_plug_in_that_cannot_be_imported_explains_itself_when_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = made(monkeypatch, [("broken", "no_such_package.cli:app")])
    run(app, "own")
    with pytest.raises(
        ConfigurationError, match=r"`tamiyo broken` cannot be loaded: No module named 'no_such_package'"
    ):
        run(app, "broken", "go", "--fast")


def test_the_laboratory_and_evaluate_are_plug_ins_and_import_no_torch() -> None:
    code = (
        "import sys; from tamiyo.streams import cli; "
        "names = [each.name for each in cli.app.registered_groups + cli.app.registered_commands]; "
        "assert {'lab', 'evaluate'} <= set(names), names; "
        "heavy = {'torch', 'pyarrow', 'scipy', 'sklearn', 'gymnasium', 'faust'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
