"""Hostile messages: random bytes, records with mutated bytes, records with hostile values."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tamiyo.schemas.codec import header
from tamiyo.schemas.columns import DTYPES, Columns
from tamiyo.schemas.record import Record

EDGES = (0x00, 0x01, 0x02, 0x7F, 0x80, 0xFE, 0xFF)
# Avro counts and lengths as zigzag varints: 2^40, the largest and the smallest long, -1.
LENGTHS = (b"\x80\x80\x80\x80\x80\x40", b"\xfe" + b"\xff" * 8 + b"\x01", b"\xff" * 9 + b"\x01", b"\x01")
FLOATS = (float("nan"), float("inf"), float("-inf"), 1.7e308, -1.7e308, 1e300, 5e-324, -0.0, -1.0, 0.5, 2.0, 1e30)
INTEGERS = (-(2**63), -1, 0, 1, 2, 9_999, 10**9, 2**31, 2**53 + 1, 2**62, 2**63 - 1, 4_102_444_800_000)
TEXTS = (
    "",
    "a",
    "*",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "s3://bucket/key",
    "a/../../b",
    "nul\0byte",
    "line\nbreak",
    "\x1b]0;title\x07\x1b[31mred",
    "[/bold]not markup[",
    "\u202etxt.exe",
    "zero\u200dwidth",
    "\U0001f9e8" * 50,
    "x" * 200,
    "x" * 201,
    "y" * 100_000,
    "%s%n{0}{run_id}",
    "no_op",
    "load_kernel",
    "step",
    "time",
)


def random_bytes(rng: random.Random, record: type[Record]) -> bytes:
    """Return up to 400 random bytes; in two of three cases behind the header of `record`."""
    return (header(record) if rng.random() < 0.67 else b"") + rng.randbytes(rng.randrange(400))


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return `data` after one to six mutations; inserted pieces come from `other`."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(8):
            case 0 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(found):
                found[place] = rng.choice(EDGES)
            case 2:
                found[place:place] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del found[place : place + rng.randint(1, 8)]
            case 4:
                del found[place:]
            case 5:
                found[place:place] = rng.choice(LENGTHS)
            case 6:
                start = rng.randrange(len(other))
                found[place : place + rng.randrange(40)] = other[start : start + rng.randrange(40)]
            case _:
                found[place:place] = found[place : place + rng.randrange(200)]
    return bytes(found)


def hostile_values(rng: random.Random, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's values with one to three of them, at any depth, replaced by hostile ones of the same type."""
    found: dict[str, Any] = dict(values)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(found))
        found[name] = _hostile(rng, found[name])
    return found


def extreme_values(rng: random.Random, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's values with a third of the numbers in up to three fields at the edge of the contract."""

    def extreme(value: Any) -> Any:
        if isinstance(value, Mapping):
            if value.keys() == Columns.model_fields.keys():
                numbers = np.frombuffer(value["values"], DTYPES[value["width"]]).tolist()
                return {**value, "width": 8, "values": np.array(extreme(numbers), DTYPES[8]).tobytes()}
            return {name: extreme(each) for name, each in value.items()}
        if isinstance(value, list):
            return [extreme(each) for each in value]
        if isinstance(value, bool) or rng.random() < 0.67:
            return value
        if isinstance(value, float):
            return (
                rng.choice((0.0, 1.0, 5e-324, value)) if 0 <= value <= 1 else rng.choice((1.7e308, 1e200, 0.0, value))
            )
        if isinstance(value, int):
            return rng.choice((0, 1, value, value + 1, 2 * value))
        return value

    found: dict[str, Any] = dict(values)
    for name in rng.sample(list(found), k=min(3, len(found))):
        found[name] = extreme(found[name])
    return found


def _hostile(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, int):
        return rng.choice(INTEGERS)
    if isinstance(value, str):
        return rng.choice(TEXTS)
    if isinstance(value, bytes):
        return rng.choice((b"", value[:-1], value + value, rng.randbytes(len(value)), b"\xff" * len(value)))
    if isinstance(value, Mapping):
        return hostile_values(rng, value) if value and rng.random() < 0.8 else {}
    if isinstance(value, list):
        return _hostile_list(rng, value)
    return rng.choice((None, *FLOATS[:2], "a", 1))


def _hostile_list(rng: random.Random, value: Sequence[Any]) -> list[Any]:
    found = list(value)
    draw = rng.random()
    if not found or draw < 0.1:
        return []
    if draw < 0.2:
        return found + found
    if draw < 0.21:
        return (found * (10_001 // len(found) + 1))[:10_001]  # one layer more than a record may have
    if draw < 0.4:
        hostile = _hostile(rng, found[0])
        # Ten thousand copies of a long text would measure this program's memory, not the decoder's.
        return [hostile if len(str(hostile)) < 1000 else found[0]] * len(found)
    place = rng.randrange(len(found))
    found[place] = _hostile(rng, found[place])
    return found
