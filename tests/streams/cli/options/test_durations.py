"""Durations as options."""

import time

import pytest
import typer

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.cli.options.durations import seconds, time_ms


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


def test_a_time_is_absolute_or_back_from_now() -> None:
    assert time_ms("--since", None) is None
    assert time_ms("--since", "2026-05-01") == 1_777_593_600_000
    for text, back_s in (("30m", 1_800), ("1d12h", 129_600), ("0s", 0)):
        found = time_ms("--since", text)
        assert found is not None
        assert abs(found - 1000 * (time.time() - back_s)) < 10_000
    assert time_ms("--since", "9" * 400 + "d") == 0


@pytest.mark.parametrize("text", ["", "yesterday", "-5m", "5", "2026-13-01", "30 m"])
def test_a_wrong_time_is_explained(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--until {text}: expected a time like .* or a duration back such as"):
        time_ms("--until", text)
