"""The public names of the SDK: what is exported, and that everything else is private by name."""

import ast
from importlib.metadata import version
from pathlib import Path

import pytest

import tamiyo.host
import tamiyo.host.blueprints
from tests.syntax import syntax_tree

ROOT = Path(__file__).parents[2]
PUBLIC_MODULES = [
    path
    for folder in ("host", "integrations", "data")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(ROOT).parts)
]


def defined(path: Path) -> set[str]:
    """Return the names that a module's own statements give a value, without what it imports."""
    found: set[str] = set()
    for node in syntax_tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def test_the_public_names_are_there() -> None:
    assert set(tamiyo.host.__all__) >= {"attach", "Handle", "HostSettings", "export", "Blueprint", "register"}
    assert all(hasattr(tamiyo.host, name) for name in tamiyo.host.__all__)
    assert callable(tamiyo.host.attach)
    assert tamiyo.host.__version__ == version("esper-tamiyo")
    assert all(hasattr(tamiyo.host.blueprints, name) for name in tamiyo.host.blueprints.__all__)


def test_the_modules_that_users_import_are_public() -> None:
    names = {str(path.relative_to(ROOT)) for path in PUBLIC_MODULES}
    assert names >= {"host/__init__.py", "host/blueprints/__init__.py", "host/testing.py", "integrations/lightning.py"}
    assert not [name for name in names if name.startswith(("host/_layers", "host/_common"))]


@pytest.mark.parametrize("path", PUBLIC_MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_not_exported_is_private_by_name(path: Path) -> None:
    exported = {
        name.value
        for node in syntax_tree(path).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.walk(node.value)
        if isinstance(name, ast.Constant)
    }
    public = {name for name in defined(path) if not name.startswith("_") and name != "log"}
    assert public <= exported


def test_what_the_docs_import_is_public() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    code = [path for path in pages if path.suffix in {".md", ".py", ".ipynb"} and path.parent.name != "reference"]
    private = {path.name for path in code if "from tamiyo.host._" in path.read_text(encoding="utf-8")}
    assert private == set()
