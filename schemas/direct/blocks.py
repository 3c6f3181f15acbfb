"""The parts of an Avro body, read straight from its bytes.

Only the one form is read that our encoder and every other known one writes: arrays in one block, and ids of plain
letters. Anything else raises `UnusualError`, and the caller reads the record in the general way, which has the last
word on what is wrong with it.
"""

import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.columns import Floats
from tamiyo.schemas.record import MAX_LAYERS

END = 0  # the byte after the last block of an array
ID = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_.:/\-]{0,199}")
"""An id without letters beyond ASCII, on which two engines for regular expressions agree."""
SHORT = [bytes([value]) for value in range(0x80)]
LONGEST = 9  # bytes of a number whose magnitude is at most 2**62, as that of every count
CANDIDATES = 8  # networks whose layers and constant columns are remembered: runs of one sweep are alike
MOST_BYTES = 16_000_000  # of all that is remembered

NULL, MEASURED = 0, b"\x02"  # the branches of a nullable number
DOUBLE = struct.Struct("<d")
FLOAT64 = np.dtype("<f8")


class UnusualError(Exception):
    """The bytes do not have the form that is read directly."""


FAILURES = (UnusualError, IndexError, ValueError, struct.error)
"""What reading bytes of another form raises."""


class Remembered:
    """The last encoded forms of fields that most records repeat, such as the names of a network's layers.

    An encoded field ends where its bytes say, so a field that begins with remembered bytes consists of them.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[bytes, Any]]] = {}
        self._bytes = 0

    def find(self, field: str, data: bytes, begin: int) -> tuple[Any, int] | None:
        """Return the value of a field that begins at `begin`, and where it ends; None if it is not known."""
        for number, (raw, value) in enumerate(self._known.get(field, ())):
            if data.startswith(raw, begin):
                if number:
                    known = self._known[field]
                    known.insert(0, known.pop(number))
                return value, begin + len(raw)
        return None

    def add(self, field: str, raw: bytes, value: Any) -> None:
        """Remember the value that `raw` encodes. It is shared: nobody may change it."""
        if self._bytes > MOST_BYTES:
            self._known.clear()
            self._bytes = 0
        known = self._known.setdefault(field, [])
        known.insert(0, (raw, value))
        self._bytes += 10 * len(raw)  # a number or a short name takes about ten times its encoded bytes
        del known[CANDIDATES:]


def encode_long(value: int) -> bytes:
    """Return a number >= 0 as Avro encodes it."""
    value <<= 1
    if value < len(SHORT):
        return SHORT[value]
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def read_long(data: bytes, begin: int) -> tuple[int, int]:
    """Return a number >= 0 and where it ends."""
    if not (first := data[begin]) & 0x81:
        return first >> 1, begin + 1
    value = shift = 0
    for place in range(begin, begin + LONGEST):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value & 1:
                raise UnusualError("a negative number")
            return value >> 1, place + 1
        shift += 7
    raise UnusualError("a large number")


def read_bytes(data: bytes, begin: int) -> tuple[bytes, int]:
    """Return bytes and where they end."""
    size, begin = read_long(data, begin)
    end = begin + size
    return data[begin:end], end


def read_id(data: bytes, begin: int) -> tuple[str, int]:
    """Return an id and where it ends."""
    found, end = read_bytes(data, begin)
    if not ID.fullmatch(found):
        raise UnusualError("not an id of plain letters")
    return found.decode("ascii"), end


def read_ids(data: bytes, begin: int, field: str, remembered: Remembered) -> tuple[list[str], int]:
    """Return an array of ids and where it ends; the list is shared."""
    if known := remembered.find(field, data, begin):
        ids: list[str]
        ids, end = known
        return ids, end
    count, end = read_long(data, begin)
    if count > MAX_LAYERS:
        raise UnusualError("more entries than layers")
    ids = []
    for _ in range(count):
        name, end = read_id(data, end)
        ids.append(name)
    if count:
        end = _after(data, end)
    remembered.add(field, data[begin:end], ids)
    return ids, end


def read_doubles(data: bytes, begin: int, count: int, into: Floats) -> int:
    """Put `count` floating-point numbers into a row, and return where they end; `begin` is behind their count."""
    into[:] = np.frombuffer(data, FLOAT64, count, begin)
    return _after(data, begin + 8 * count)


def read_longs(data: bytes, begin: int, count: int) -> tuple[npt.NDArray[np.float64], int]:
    """Return `count` numbers >= 0 and where they end; `begin` is behind their count."""
    found = np.frombuffer(data, np.uint8, min(len(data) - begin, LONGEST * count), begin)
    ends = np.flatnonzero(found < 0x80)[:count]
    if len(ends) < count:
        raise UnusualError("fewer numbers, or large ones")
    sizes = np.diff(ends, prepend=-1)
    values = np.zeros(count, dtype=np.int64)
    for place in range(int(sizes.max())):  # from the first byte of each number, which has its lowest bits
        has = sizes > place
        values[has] |= (found[ends[has] - sizes[has] + 1 + place].astype(np.int64) & 0x7F) << (7 * place)
    if (values & 1).any():
        raise UnusualError("a negative number")
    return (values >> 1).astype(np.float64), _after(data, begin + int(ends[-1]) + 1)


def read_nullable(data: bytes, begin: int, count: int, kind: str, into: Floats) -> tuple[list[int], int]:
    """Put `count` numbers or nulls into a row; return which are null, and where they end.

    Args:
        data: The body.
        begin: Where the first begins, behind their count.
        count: How many.
        kind: double or long.
        into: The row; 0 where null.
    """
    end = begin + 9 * count
    if kind == "double" and data[begin:end:9] == MEASURED * count:
        cells = np.frombuffer(data, np.uint8, 9 * count, begin).reshape(count, 9)[:, 1:]
        into[:] = np.ascontiguousarray(cells).view(FLOAT64)[:, 0]
        return [], _after(data, end)
    null: list[int] = []
    for number in range(count):
        branch = data[begin]
        begin += 1
        if branch == NULL:
            null.append(number)
            into[number] = 0.0
        elif branch != MEASURED[0]:
            raise UnusualError("no branch of the union")
        elif kind == "double":
            (into[number],) = DOUBLE.unpack_from(data, begin)
            begin += DOUBLE.size
        else:
            into[number], begin = read_long(data, begin)
    return null, _after(data, begin)


def _after(data: bytes, end: int) -> int:
    if data[end] != END:
        raise UnusualError("an array of several blocks")
    return end + 1
