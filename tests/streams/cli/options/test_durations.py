"""Durations as options."""

import pytest
import typer

from tamiyo.streams.cli.options.durations import seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30d", 2_592_000.0), ("12h", 43_200.0), ("1d12h", 129_600.0), ("90s", 90.0), ("1.5m", 90.0), ("2w", 1_209_600.0)],
)
def test_a_duration_is_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "d", "30 d", "-1d", "30days", "1d 2h", "1y"])
def test_anything_else_is_explained(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected a duration such as 30d"):
        seconds(text)
