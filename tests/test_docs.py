"""What README and docs/ name exists: links, files, modules, commands, environment variables, make's targets."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tamiyo.schemas.settings import CONFIG
from tamiyo.streams.admin.configuration import variables
from tests.deploy.support import command_problem
from tests.syntax import parsed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FOLDERS = (
    "schemas",
    "models",
    "host",
    "streams",
    "integrations",
    "data",
    "evaluation",
    "deploy",
    "docs",
    "examples",
    "tests",
    "scripts",
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def command_lines(text: str) -> list[str]:
    """Return the lines of a page's command blocks, comments removed, continued lines joined."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]


@each_page
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        target = link.partition("#")[0]
        if target and not target.startswith("https://"):
            assert (page.parent / target).exists(), link


@each_page
def test_files_and_modules_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text):
        assert (ROOT / name).exists(), name
    if page.name != "CHANGELOG.md":  # it also names what was
        for name in re.findall(r"python -m (tamiyo[\w.]+|scripts[\w.]+)", text):
            assert find_spec(name.rstrip(".")) is not None, name


@each_page
def test_commands_are_accepted_by_the_program(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in command_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(line.partition("|")[0], comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] in (["tamiyo"], [".venv/bin/tamiyo"]) and words[1:] != ["--help"] and page.name != "cli.md":
            assert command_problem(words[1:]) is None, line


@each_page
def test_python_on_a_page_parses_and_imports_what_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(parsed(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tamiyo"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@each_page
def test_environment_variables_are_read(page: Path) -> None:
    known = {*variables(), CONFIG}
    for name in re.findall(r"`(TAMIYO_\w+[A-Z])(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
        assert name in known, name
    for line in command_lines(page.read_text(encoding="utf-8")):
        for name in re.findall(r"(TAMIYO_\w+)=", line):
            assert name in known, name


def test_every_setting_has_a_description() -> None:
    fields = {name: cls.model_fields[field] for name, (cls, field) in variables().items()}
    assert [name for name, field in fields.items() if not field.description] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    tomllib.loads(navigation)
    listed = re.findall(r'"([\w/.-]+\.md)"', navigation)
    assert sorted(listed) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES[3:])


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_reference_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reference", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_sections_of_the_design_that_code_cites_exist() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE))
    sources = [path for folder in FOLDERS[:7] for path in (ROOT / folder).rglob("*.py")]
    cited = {
        number
        for path in sources
        for number in re.findall(r"design,? section (\d+)", path.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert cited
    assert cited <= sections
