"""Laws of the sources and the dependencies: nothing read is run, everything installed is pinned."""

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.syntax import parsed, syntax_tree

ROOT = Path(__file__).parents[3]
FOLDERS = ("schemas", "streams", "models", "host", "integrations", "data", "evaluation", "deploy", "tests")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
USERS_OWN = {"tests/host/loops/test_written_steps.py": ["torch.load"]}
"""A loop as users write them, which reads back the model that it has just pickled."""
NEVER = {"eval", "exec", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


def name_of(node: ast.expr) -> str:
    """Return the dotted name that is called."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(tree: ast.Module) -> Iterator[str]:
    """Yield every use of a function that could run its input."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {each.name}" for each in node.names if each.name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield f"from {node.module}"
        elif isinstance(node, ast.Call):
            called = name_of(node.func)
            given = {each.arg: each.value for each in node.keywords}
            if called in NEVER:
                yield called
            safe = isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True
            if called in ("torch.jit.load", "pd.read_pickle") or (called == "torch.load" and not safe):
                yield called
            for danger in ("allow_pickle", "shell"):
                value = given.get(danger)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    yield f"{called}({danger}=)"


def test_nothing_read_is_ever_run() -> None:
    assert len(SOURCES) > 150
    found = {str(path.relative_to(ROOT)): list(findings(syntax_tree(path))) for path in SOURCES}
    assert {path: each for path, each in found.items() if each} == USERS_OWN


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "yaml.load(x)",
        "subprocess.run(x, shell=True)",
        "import cloudpickle as c",
    ],
)
def test_the_check_finds_violations(text: str) -> None:
    assert list(findings(parsed(text)))


def reachable(extras: set[str]) -> set[str]:
    """Return the names of everything that the project with `extras` brings, as it is installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]
    waiting, found = [Requirement(each) for each in wanted], set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in found:
            continue
        try:
            further = requires(requirement.name) or []
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        found.add(key)
        for each in map(Requirement, further):
            if applies(each.marker, requirement.extras or {""}):
                waiting.append(each)
    return {name for name, _ in found}


def applies(marker: Marker | None, extras: set[str]) -> bool:
    """Return whether a requirement holds here under any of `extras`."""
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def test_everything_that_can_be_installed_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+", line) for line in pins)
    pinned = {canonicalize_name(line.split("==")[0]) for line in pins}
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    needed = reachable(extras)
    assert {"torch", "aiokafka", "hypothesis", "multidict"} <= needed
    # Installers belong to the environment, and NVIDIA's libraries to torch's own builds.
    spared = {"setuptools", "pip", "wheel", "triton"}
    unpinned = {n for n in needed - pinned - spared if not n.startswith(("nvidia-", "cuda-"))}
    assert unpinned == set()
