"""Durations and times as options: 30d, 12h, 1d12h; 2026-05-01T10:00."""

import re
import time
from datetime import UTC, datetime

import typer

from tamiyo.schemas.errors import ConfigurationError

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


def time_ms(flag: str, text: str | None) -> int | None:
    """Return the time that an option names, ms since the epoch: a duration back from now, or a time (UTC).

    Raises:
        ConfigurationError: it is neither; the message names the option.

    Example:
        >>> time_ms("--since", "2026-05-01T10:00"), time_ms("--since", "2026-05-01T12:00+02:00")
        (1777629600000, 1777629600000)
    """
    if text is None:
        return None
    if text and not PART.sub("", text):
        return max(0, round(1000 * (time.time() - min(seconds(text), time.time()))))
    try:
        found = datetime.fromisoformat(text)
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{flag} {text}: expected a time like 2026-05-01T10:00 or 2026-05-01T10:00+02:00, or a duration back such "
            "as 30m or 2d"
        ) from error
