"""Read and write signals, the record between intake and windows: most messages of an installation are signals.

What is written is byte for byte what `encode` writes. What is read gives the same record as `decode`; signals that
break the contract are left to `decode`, whose error names what is wrong.
"""

import math
from functools import cache, lru_cache

import numpy as np

from tamiyo.schemas.analysis import SAMPLING, HealthSignals
from tamiyo.schemas.codec import body_begin, decode, framing
from tamiyo.schemas.columns import DTYPES, MAX_NAMES, Columns, Floats
from tamiyo.schemas.direct.blocks import (
    DOUBLE,
    FAILURES,
    Remembered,
    UnusualError,
    encode_long,
    read_bytes,
    read_id,
    read_ids,
    read_long,
)
from tamiyo.schemas.direct.frames import MOST_COMPANIONS, scalar_limits
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import MAX_READ_BYTES

FIELDS = (
    "run_id", "signal_id", "source", "step", "epoch", "time_ms", "companions", "final", "layer_id", "columns",
    "sampling", "shed", "filtered", "model_metrics",
)  # fmt: skip
"""The record's fields, in the order in which they are read and written."""
MOST_WRITTEN = 1_000  # lists of names whose bytes are remembered


class SignalsReader:
    """Reads signals."""

    def __init__(self) -> None:
        if tuple(HealthSignals.model_fields) != FIELDS:
            raise TypeError(f"a signal does not consist of {FIELDS}")
        self._remembered = Remembered()
        self._most = scalar_limits(HealthSignals, ("step", "epoch", "time_ms", "shed", "filtered"))

    def read(self, data: bytes, begin: int) -> HealthSignals:
        """Read a signal's Avro body, which begins at `begin`.

        Raises:
            UnusualError: It breaks the contract, or does not have the usual form.
        """
        most, remembered = self._most, self._remembered
        run_id, end = read_id(data, begin)
        signal_id, end = read_id(data, end)
        source, end = read_id(data, end)
        step, end = read_long(data, end)
        epoch, end = read_long(data, end)
        time_ms, end = read_long(data, end)
        companions, end = read_ids(data, end, "companions", remembered)
        final = data[end]
        layers, end = read_ids(data, end + 1, "layer_id", remembered)
        columns, matrix, end = self._columns(data, end, "columns", len(layers))
        sampling, chances, end = self._columns(data, end, "sampling", len(layers))
        shed, end = read_long(data, end)
        filtered, end = read_long(data, end)
        model, end = _read_metrics(data, end)
        if step > most["step"] or epoch > most["epoch"] or time_ms > most["time_ms"]:
            raise UnusualError("a large number")
        if shed > most["shed"] or filtered > most["filtered"] or len(companions) > MOST_COMPANIONS or final > 1:
            raise UnusualError("values beyond the contract")
        if sampling.names != SAMPLING or not _probable(chances) or np.isinf(matrix).any() or end != len(data):
            raise UnusualError("values beyond the contract")
        record = HealthSignals.of_checked(
            run_id=run_id, signal_id=signal_id, source=source, step=step, epoch=epoch, time_ms=time_ms,
            companions=companions, final=bool(final), layer_id=layers, columns=columns, sampling=sampling, shed=shed,
            filtered=filtered, model_metrics=model,
        )  # fmt: skip
        record.__dict__["matrix"] = matrix  # a cached property, computed already
        return record

    def _columns(self, data: bytes, begin: int, field: str, layers: int) -> tuple[Columns, Floats, int]:
        """Return columns, their values as [names, layers], and where they end."""
        names, end = read_ids(data, begin, field, self._remembered)
        width, end = read_long(data, end)
        values, end = read_bytes(data, end)
        if width not in DTYPES or len(values) != width * len(names) * layers or len(names) > MAX_NAMES:
            raise UnusualError("not as many values as layers and names")
        if len(set(names)) != len(names):
            raise UnusualError("two columns of one name")
        matrix = np.frombuffer(values, DTYPES[width]).reshape(len(names), layers).astype(DTYPES[8], copy=False)
        return Columns.of_checked(names=names, width=width, values=values), matrix, end


def decode_signals(data: bytes | None) -> HealthSignals:
    """Decode a signal, directly where it can be.

    Args:
        data: A message's value.

    Raises:
        DecodeError: As `decode`.
        RecordError: As `decode`.
        RegistryError: As `decode`.
    """
    if data is not None and len(data) <= MAX_READ_BYTES:
        try:
            begin, writer = framing(data, HealthSignals)
            if writer is None:
                return _reader().read(data, begin)
        except (*FAILURES, SchemaError):
            pass  # `decode` has the last word
    return decode(data, HealthSignals)


def encode_signals(record: HealthSignals) -> bytes:
    """Encode a signal: the bytes of `encode`.

    Raises:
        RegistryError: As `encode`.
    """
    columns, sampling = record.columns, record.sampling
    parts = [
        body_begin(HealthSignals), _text(record.run_id), _text(record.signal_id), _text(record.source),
        encode_long(record.step), encode_long(record.epoch), encode_long(record.time_ms),
        _texts(tuple(record.companions)), b"\1" if record.final else b"\0", _texts(tuple(record.layer_id)),
        _texts(tuple(columns.names)), encode_long(columns.width), encode_long(len(columns.values)), columns.values,
        _texts(tuple(sampling.names)), encode_long(sampling.width), encode_long(len(sampling.values)), sampling.values,
        encode_long(record.shed), encode_long(record.filtered),
    ]  # fmt: skip
    if record.model_metrics:
        parts.append(encode_long(len(record.model_metrics)))
        for name, value in record.model_metrics.items():
            parts += _text(name), DOUBLE.pack(value)
    parts.append(b"\0")
    return b"".join(parts)


@cache
def _reader() -> SignalsReader:
    return SignalsReader()


def _probable(chances: Floats) -> bool:
    """Return whether priorities are finite and >= 0, and survivals in 0..1; a NaN makes both reductions NaN."""
    if not chances.size:
        return True
    low, high = np.minimum.reduce(chances, axis=None), np.maximum.reduce(chances, axis=1).tolist()
    return bool(low >= 0 and high[0] < math.inf and high[1] <= 1)


def _read_metrics(data: bytes, begin: int) -> tuple[dict[str, float], int]:
    """Return the model's metrics and where they end."""
    count, end = read_long(data, begin)
    found: dict[str, float] = {}
    for _ in range(count):
        name, end = read_bytes(data, end)
        (value,) = DOUBLE.unpack_from(data, end)
        if not math.isfinite(value):
            raise UnusualError("a metric that is not finite")
        found[name.decode()] = value
        end += DOUBLE.size
    if count and data[end] != 0:
        raise UnusualError("a map of several blocks")
    return found, end + 1 if count else end


def _text(value: str) -> bytes:
    encoded = value.encode()
    return encode_long(len(encoded)) + encoded


@lru_cache(maxsize=MOST_WRITTEN)
def _texts(values: tuple[str, ...]) -> bytes:
    return encode_long(len(values)) + b"".join(map(_text, values)) + b"\0" if values else b"\0"
