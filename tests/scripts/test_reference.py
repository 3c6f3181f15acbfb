"""The generated reference pages: complete, and known to be stale when they are."""

from pathlib import Path
from typing import Literal

import pytest
import typer
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict
from scripts.reference import __main__ as program
from scripts.reference.command_line import command_line, walk
from scripts.reference.configuration import configuration, row
from scripts.reference.features import features
from scripts.reference.markdown import prose, table
from scripts.reference.metrics import metrics
from scripts.reference.modules import modules
from scripts.reference.topics import topics

from tamiyo.models.features import EDGE_FEATURES, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.schemas.settings import Settings
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.admin.configuration import described, variables
from tamiyo.streams.cli import app
from tests.deploy.support import metrics as exported

ROOT = Path(__file__).parents[2]


class Sample(Settings):
    """Settings of every kind."""

    model_config = SettingsConfigDict(env_prefix="SAMPLE_")

    count: int = Field(3, ge=1, lt=10)
    level: Literal["low", "high"] = "low"
    names: list[str] = []
    password: SecretStr | None = None
    enabled: bool = True


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("count", "int, >= 1 and < 10", "`3`"),
        ("level", "`low` or `high`", "`low`"),
        ("names", "list of str", "`[]`"),
        ("password", "secret", "unset"),
        ("enabled", "bool", "`true`"),
    ],
)
def test_types_and_defaults_for_people(name: str, kind: str, default: str) -> None:
    cells = {each.key: row(each) for each in described(Sample)}
    assert cells[name] == (f"`SAMPLE_{name.upper()}`", kind, default, "")


def test_what_markdown_would_take_for_markup_is_escaped_outside_code() -> None:
    assert prose("* for all [default: `*`] <none>") == r"\* for all \[default: `*`\] \<none\>"
    assert table(("a",), [("x | y",)]) == "| a |\n| --- |\n| x \\| y |\n"


def test_every_setting_is_on_its_page() -> None:
    page = configuration()
    assert [name for name in variables() if f"`{name}`" not in page] == []


def test_every_topic_with_its_record_is_on_its_page() -> None:
    page = topics()
    for topic in CATALOGUE:
        record = topic.record.__name__
        row = f"| `{topic.name}` | [{record}](#{record.lower()}) | {topic.writer} | {', '.join(topic.readers)} | "
        assert row in page
        assert f"### {record}\n" in page


def test_every_feature_is_on_its_page() -> None:
    page = features()
    for listed in (NODE_FEATURES, EDGE_FEATURES, GLOBAL_FEATURES):
        for index, feature in enumerate(listed):
            assert f"| {index} | `{feature.name}` |" in page


def test_every_metric_is_on_its_page() -> None:
    page = metrics()
    names = [name for name in exported() if name.startswith("tamiyo_")]
    assert len(names) > 40
    assert [name for name in names if name.rpartition("_")[0] not in page and name not in page] == []


def test_every_command_is_on_its_page() -> None:
    page = command_line()
    paths = [path for path, _ in walk(typer.main.get_command(app), "tamiyo")]
    assert len(paths) > 20
    assert [path for path in paths if path not in page] == []
    assert "`--stage` | str, repeatable |" in page


def test_every_module_is_on_the_map() -> None:
    page = modules()
    assert "  streams.stages.windows --> streams.stages\n" in page
    assert "host --> streams" not in page
    for folder in ("schemas", "models", "host", "streams", "integrations", "data", "evaluation"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert f"| `{path.name}` | " in page, path


def test_a_stale_page_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "FOLDER", tmp_path)
    monkeypatch.setattr(program, "PAGES", {"one.md": lambda: "1\n\n", "two.md": lambda: "2"})
    monkeypatch.setenv("TAMIYO_STORE_URL", "memory://elsewhere")
    assert program.main(["--check"]) == 1
    assert program.main([]) == 0
    assert (tmp_path / "one.md").read_text() == "1\n"
    assert program.main(["--check"]) == 0
    (tmp_path / "two.md").write_text("changed\n")
    capsys.readouterr()
    assert program.main(["--check"]) == 1
    assert "out of date: two.md;" in capsys.readouterr().err
