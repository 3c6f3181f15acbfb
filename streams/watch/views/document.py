"""What every view's document has."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from tamiyo.streams.watch.history import History

Document = dict[str, Any]
DIGITS = 7  # significant digits of a float32


class UnknownIdError(LookupError):
    """The history has no run or decision of this id, at that time."""


def document(history: History, view: str, *, at_ms: int | None, whole: bool) -> Document:
    """Return the part of a document that all views share; the history's lock is held."""
    return {
        "view": view,
        "revision": history.revision,
        "whole": whole,
        "source": asdict(history.source),
        "now_ms": history.now_ms(at_ms),
    }


def since(at_ms: int | None, after: int) -> int:
    """Return the revision after which changes are in the document: all of them where it is as of a past time."""
    return 0 if at_ms is not None else after


def numbers(values: Any) -> list[float | None]:
    """Return numbers as JSON has them: None for NaN, and of float32 no more digits than it has."""
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        scale = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.abs(array))))
        usable = np.isfinite(scale) & (scale > 0)
        array = np.where(usable, np.round(array * scale) / scale, array)
    return [value if value - value == 0 else None for value in array.tolist()]


def wholes(values: Iterable[float]) -> list[int | None]:
    """Return whole numbers as JSON has them: None for NaN."""
    return [int(value) if value - value == 0 else None for value in values]


def number(value: float | None) -> float | None:
    """Return a number, None where it is not finite."""
    return value if value is not None and value - value == 0 else None
