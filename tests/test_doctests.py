"""The examples in docstrings run and print what they show."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.support.experiences import make_experience
from tests.support.factories import make_graph

PACKAGES = ("models", "schemas", "host", "integrations", "streams", "data")
WITH_EXAMPLES = ("models", "schemas", "host", "data")


def modules(package: str) -> Iterator[ModuleType]:
    """Import a package of tamiyo and every module in it, programs excepted."""
    root = importlib.import_module(f"tamiyo.{package}")
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
        if not found.name.endswith(".__main__"):
            yield importlib.import_module(found.name)


def run(module: ModuleType, names: dict[str, Any]) -> tuple[int, str]:
    """Run the examples of one module; return how many there are, and a report of those that fail."""
    runner, report = doctest.DocTestRunner(verbose=False), []
    for found in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=names):
        runner.run(found, out=report.append)
    return runner.tries, "".join(report)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """Return the records that examples take as given; building them in each would hide the point."""
    return {"graph": make_graph(), "experience": make_experience()}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_examples_of_docstrings_run(package: str, names: dict[str, Any]) -> None:
    results = [run(module, names) for module in modules(package)]
    assert "".join(report for _, report in results) == ""
    assert package not in WITH_EXAMPLES or sum(tries for tries, _ in results) > 0


def test_a_wrong_example_is_reported() -> None:
    module = ModuleType("module")
    module.__doc__ = ">>> 1 + 1\n3\n"
    tries, report = run(module, {})
    assert tries == 1
    assert "Expected:\n    3\nGot:\n    2" in report
