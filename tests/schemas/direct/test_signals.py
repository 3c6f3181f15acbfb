"""Signals read and written directly: the same bytes, records and refusals as in the general way."""

from typing import Any

import numpy as np
import pytest

from tamiyo.schemas.analysis import SAMPLING, HealthSignals
from tamiyo.schemas.codec import HEADER, decode, encode
from tamiyo.schemas.columns import Columns
from tamiyo.schemas.direct.signals import decode_signals, encode_signals
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.record import MAX_LAYERS
from tests.schemas.direct.test_frames import words_of

LAYERS = ["fc", "layers.1", "layers.1"]


def signals(**fields: Any) -> HealthSignals:
    """Return a signal of three layers and two metrics."""
    columns = {
        "run_id": "run-1",
        "signal_id": "0123456789abcdef",
        "source": "telemetry.layer.health_signals",
        "step": 130,
        "epoch": 1,
        "time_ms": 1_700_000_000_000,
        "companions": ["telemetry.layer.health_signals"],
        "layer_id": LAYERS,
        "columns": Columns.of(["alpha", "health"], [[0.5, 1.0, None], [0.25, 0.0, -3.0]]),
        "sampling": Columns.of(SAMPLING, [[0.0, 100.0, 1.5], [1.0, 0.5, 0.25]]),
    }
    return HealthSignals(**{**columns, **fields})


SIGNALS = {
    "layers": signals(),
    "float64": signals(columns=Columns.of(["alpha"], [[0.1, 0.2, 0.3]]), shed=3, filtered=MAX_LAYERS, final=True),
    "the model": HealthSignals(
        run_id="run-1", signal_id="a", source="b", step=0, time_ms=0, layer_id=[], model_metrics={"loss": 0.1, "": -1.0}
    ),
    "every layer shed": signals(
        layer_id=[], columns=Columns(names=["alpha"]), sampling=Columns(names=SAMPLING), shed=3
    ),
    "letters": signals(run_id="größe", layer_id=["ä", "ö", "ü"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNALS)
def test_the_bytes_are_those_of_encode(name: str) -> None:
    assert encode_signals(SIGNALS[name]) == encode(SIGNALS[name])


@pytest.mark.parametrize("name", SIGNALS)
def test_the_record_is_that_of_decode(name: str) -> None:
    data = encode(SIGNALS[name])
    for _ in range(2):  # the second time, names are remembered
        found = decode_signals(data)
        assert found == decode(data, HealthSignals) == SIGNALS[name]
        np.testing.assert_array_equal(found.matrix, SIGNALS[name].matrix)
        assert found.model_dump() == SIGNALS[name].model_dump()
        assert encode(found) == data


@pytest.mark.parametrize("name", ["layers", "float64", "the model"])
@pytest.mark.parametrize("value", [0x00, 0x01, 0x02, 0x7F, 0x80, 0xFF])
def test_any_changed_byte_has_the_effect_that_it_has_in_decode(name: str, value: int) -> None:
    data = encode(SIGNALS[name])
    for place in range(HEADER, len(data)):
        _assert_same_outcome(data[:place] + bytes([value]) + data[place + 1 :])


def test_signals_that_are_cut_or_longer_are_refused_as_by_decode() -> None:
    data = encode(SIGNALS["layers"])
    for end in range(len(data)):
        _assert_same_outcome(data[:end])
    _assert_same_outcome(data + b"\0")
    _assert_same_outcome(None)


def _assert_same_outcome(data: bytes | None) -> None:
    outcomes: list[Any] = []
    for read in (decode_signals, lambda data: decode(data, HealthSignals)):
        try:
            outcomes.append(repr(read(data)))  # a NaN in a map equals itself as text
        except SchemaError as error:
            outcomes.append((type(error), words_of(error)))
    assert outcomes[0] == outcomes[1]


def test_two_columns_of_one_name_are_refused() -> None:
    data = encode(signals(columns=Columns.of(["alpha", "gamma"], [[0.5, 1.0, None], [0.25, 0.0, -3.0]])))
    with pytest.raises(SchemaError, match="two columns have one name"):
        decode_signals(data.replace(b"gamma", b"alpha"))
