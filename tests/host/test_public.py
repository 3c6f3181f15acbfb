"""The public names of the SDK, and the examples in their docstrings."""

import doctest
import importlib
from importlib.metadata import version

import pytest

import tamiyo.host

DOCUMENTED = ["attachment", "handle", "testing", "blueprints", "blueprints.base", "layers.export"]


def test_the_public_names_are_there() -> None:
    assert set(tamiyo.host.__all__) >= {"attach", "Handle", "HostSettings", "export", "Blueprint", "register"}
    assert all(hasattr(tamiyo.host, name) for name in tamiyo.host.__all__)
    assert callable(tamiyo.host.attach)
    assert tamiyo.host.__version__ == version("esper-tamiyo")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"tamiyo.host.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
