"""Laws of the code's layout: import direction, no cycles, no pickle, folders of a readable size."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.syntax import syntax_tree

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "streams", "models", "host", "integrations", "data", "evaluation")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "models": {"schemas", "models"},
    "host": {"schemas", "host"},
    "integrations": {"schemas", "host", "integrations"},
    "streams": {"schemas", "models", "streams", "host"},
    "data": {"schemas", "streams", "data"},
    "evaluation": set(FOLDERS),
}
LARGEST_FOLDER = 20
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}

Graph = dict[str, set[str]]


def sources(*folders: str) -> list[Path]:
    """Return every Python file under the folders, sub-folders included."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def module_name(path: Path) -> str:
    """Return the name under which a source file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("tamiyo", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imported(path: Path, modules: Iterable[str]) -> set[str]:
    """Return the modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    known = set(modules)
    found: set[str] = set()
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # `from package import name` imports a module where the name is one, else something from the package.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in known else node.module for name in names)
    return found


@pytest.fixture(scope="module")
def modules() -> Graph:
    """Return each module of the project with the modules of the project that it imports."""
    paths = {module_name(path): path for path in sources(*FOLDERS)}
    return {name: imported(path, paths) & set(paths) for name, path in paths.items()}


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a cycle of a graph, empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def packages(modules: Mapping[str, set[str]]) -> Graph:
    """Return each folder with the other folders that its own files import."""
    folder = {module_name(path): ".".join(module_name(path.parent / "x").split(".")[:-1]) for path in sources(*FOLDERS)}
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for name, uses in modules.items():
        graph[folder[name]].update(folder[used] for used in uses if folder[used] != folder[name])
    return dict(graph)


def test_no_module_imports_in_a_cycle(modules: Graph) -> None:
    assert cycle(modules) == []


def test_no_package_imports_in_a_cycle(modules: Graph) -> None:
    assert cycle(packages(modules)) == []


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str, modules: Graph) -> None:
    for name, uses in modules.items():
        if name.split(".")[1] == folder:
            foreign = {used for used in uses if used.split(".")[1] not in MAY_IMPORT[folder]}
            assert not foreign, f"{name} imports {sorted(foreign)}"


def test_nothing_is_pickled() -> None:
    for path in sources(*FOLDERS):
        used = {name.split(".")[0] for name in imported(path, ())}
        assert not used & PICKLES, path


def test_no_folder_is_crowded() -> None:
    sizes = Counter(path.parent for path in sources("streams", "host", "evaluation", "schemas", "tests"))
    crowded = {str(folder.relative_to(ROOT)): size for folder, size in sizes.items() if size > LARGEST_FOLDER}
    assert not crowded


def test_every_stage_package_has_its_stage() -> None:
    for folder in (ROOT / "streams" / "stages").iterdir():
        if folder.is_dir() and not folder.name.startswith("__"):
            assert re.search(r"^class \w+Stage\b", (folder / "stage.py").read_text(), re.MULTILINE), folder
