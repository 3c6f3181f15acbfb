"""Durations as options: 30d, 12h, 1d12h."""

import re

import typer

SECONDS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
PART = re.compile(r"(\d+(?:\.\d+)?)([wdhms])")


def seconds(text: str) -> float:
    """Return the seconds of a duration; for typer's `parser`.

    Raises:
        BadParameter: it is not one.

    Example:
        >>> seconds("30d"), seconds("1h30m")
        (2592000.0, 5400.0)
    """
    if not text or PART.sub("", text):
        raise typer.BadParameter(f"expected a duration such as 30d, 12h or 1d12h (units: w, d, h, m, s), got {text!r}")
    return sum(float(number) * SECONDS[unit] for number, unit in PART.findall(text))
