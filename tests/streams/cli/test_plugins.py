"""Commands of other packages, found through entry points."""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli import options, plugins

ROOT = Path(__file__).parents[3]

extra = typer.Typer(help="A plug-in.")


@extra.command("go")
def go() -> None:
    """Do nothing."""


@extra.command("stay")
def stay() -> None:
    """Do nothing either."""


plain = typer.Typer()
plain.command()(go)

single = typer.Typer()
counted: list[int] = []


@single.command(epilog="An example.", rich_help_panel="Counts")
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
        ConfigurationError, match=r"`tamiyo broken` cannot be loaded: No module named 'no_such_package'$"
    ):
        run(app, "broken", "go", "--fast")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    app = made(monkeypatch, [("broken", "no_such_package.cli:app [data,s3]")])
    with pytest.raises(ConfigurationError, match=r"; install esper-tamiyo\[data,s3\]$"):
        run(app, "broken")
    (command,) = [each for each in app.registered_commands if each.name == "broken"]
    assert command.rich_help_panel == options.MISSING


def test_a_plug_in_names_its_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [("extra", f"{__name__}:extra"), ("measure", f"{__name__}:single"), ("plain", f"{__name__}:plain")]
    app = made(monkeypatch, entries)
    panels = {each.name: each.rich_help_panel for each in [*app.registered_commands, *app.registered_groups]}
    assert (panels["measure"], panels["plain"]) == ("Counts", options.LABORATORY)
    assert panels["extra"] == options.LABORATORY


def test_every_plug_in_of_ours_names_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = [EntryPoint(*each, plugins.GROUP) for each in project["entry-points"][plugins.GROUP].items()]
    assert {each.name: each.extras for each in entries} == {"evaluate": ["lab"], "export": ["data"], "lab": ["lab"]}
    assert {"lab", "data"} <= set(project["optional-dependencies"])


def test_our_plug_ins_are_commands_and_import_no_torch() -> None:
    code = (
        "import sys; from tamiyo.streams import cli; "
        "names = [each.name for each in cli.app.registered_groups + cli.app.registered_commands]; "
        "assert {'lab', 'evaluate', 'export'} <= set(names), names; "
        "heavy = {'torch', 'pyarrow', 'scipy', 'sklearn', 'gymnasium', 'faust'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
