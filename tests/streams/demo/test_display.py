import io

import pytest
from rich.console import Console

from tamiyo.schemas.topics import CHECKPOINTS
from tamiyo.streams.demo.display import Display
from tests.support.results import checkpoint


@pytest.mark.parametrize(
    ("initial", "version", "shown"),
    [
        ("builtin", 0, "policy version 0 from the laboratory, as it comes with the package"),
        ("heuristic", 0, "policy version 0 from the heuristic"),
        ("file:///own[red].safetensors", 0, "policy version 0 from file:///own[red].safetensors"),
        ("builtin", 3, "policy version 3 from 48 experiences"),
    ],
)
def test_a_policy_is_shown_with_where_it_comes_from(initial: str, version: int, shown: str) -> None:
    page = io.StringIO()
    display = Display(Console(file=page, width=200, force_terminal=False), 10, initial)
    display.take(CHECKPOINTS, checkpoint(version=version, experiences=16 * version))
    assert page.getvalue() == shown + "\n"
