"""Columns: what is stored is what is read, to the bit, and nothing that contradicts itself is read."""

import io
import math
from typing import Any

import fastavro
import numpy as np
import pytest
from fastavro._read_common import SchemaResolutionError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.schemas.analysis import SAMPLING, STATISTICS, HealthSignals, HealthWindow
from tamiyo.schemas.avro_schema import released
from tamiyo.schemas.codec import current_body, decode, encode, parsed_schema, validate
from tamiyo.schemas.columns import Columns, entries
from tamiyo.schemas.errors import DecodeError, RecordError
from tests.support.factories import make_window
from tests.support.telemetry import signal

RELEASED = "0.1.0"
SIGNAL = signal("telemetry.layer.health_signals", 10, {"norm": [0.1, None], "seeds": [2.0, 0.0]}, layers=["a", "b"])
WINDOW = make_window(layers=2, growth_score=[None, 0.25])


@given(arrays.arrays(np.float64, st.tuples(st.integers(0, 3), st.integers(0, 4)), elements=st.floats()))
def test_values_come_back_to_the_bit(matrix: np.ndarray) -> None:
    columns = Columns.of([str(number) for number in range(len(matrix))], matrix)
    np.testing.assert_array_equal(columns.matrix(matrix.shape[1]), matrix)


def test_float32_suffices_for_counts_and_for_what_torch_measures() -> None:
    assert Columns.of(["a"], [[1.0, 2.0**24, float(np.float32(0.1)), math.nan, -0.0]]).width == 4
    assert Columns.of(["a"], [[0.1]]).width == 8
    for beyond in (2.0**200, 2.0**-200, -(2.0**128), 2.0**-127):
        columns = Columns.of(["a"], [[beyond]])
        assert (columns.width, columns.matrix(1).tolist()) == (8, [[beyond]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"names": ["a", "a"], "values": bytes(8)}, "two columns have one name"),
        ({"width": 5}, "multiple of 4"),
        ({"width": 16}, "less than or equal to 8"),
        ({"names": ["a"], "values": bytes(4)}, "expected 8 bytes"),
        ({"names": ["a"], "values": bytes(16)}, "expected 8 bytes"),
        ({"names": [], "values": bytes(4)}, "expected 0 bytes"),
        ({"names": ["a"], "values": np.array([1.0, np.inf], "<f4").tobytes()}, "a metric is infinite"),
    ],
)
def test_signals_that_contradict_themselves_are_refused(columns: dict[str, Any], message: str) -> None:
    values = SIGNAL.model_dump()
    with pytest.raises(RecordError, match=message):
        validate({**values, "columns": {"width": 4, "names": [], "values": b"", **columns}}, HealthSignals)


@pytest.mark.parametrize(
    "sampling",
    [
        [[0.0, -1.0], [1.0, 1.0]],
        [[0.0, math.nan], [1.0, 1.0]],
        [[0.0, math.inf], [1.0, 1.0]],
        [[0.0, 0.0], [1.0, 1.5]],
        [[0.0, 0.0], [-0.5, 1.0]],
        [[0.0, 0.0], [math.nan, 1.0]],
    ],
)
def test_priority_and_survival_stay_in_their_range(sampling: list[list[float]]) -> None:
    with pytest.raises(RecordError, match=r"a finite priority >= 0 and a survival in 0\.\.1"):
        validate({**SIGNAL.model_dump(), "sampling": Columns.of(SAMPLING, sampling).model_dump()}, HealthSignals)
    wrong = Columns.of(["survival", "priority"], [[0.0, 0.0], [1.0, 1.0]])
    with pytest.raises(RecordError, match="in sampling"):
        validate({**SIGNAL.model_dump(), "sampling": wrong.model_dump()}, HealthSignals)


@pytest.mark.parametrize(
    ("statistic", "value", "message"),
    [
        ("mean", math.inf, "infinite"),
        ("count", -1.0, "counts"),
        ("count", 1.5, "counts"),
        ("count", math.nan, "counts"),
    ],
)
def test_windows_that_contradict_themselves_are_refused(statistic: str, value: float, message: str) -> None:
    cube = WINDOW.cube.copy()
    cube[0, STATISTICS.index(statistic), 0] = value
    columns = Columns.of(WINDOW.columns.names, cube)
    with pytest.raises(RecordError, match=message):
        validate({**WINDOW.model_dump(), "columns": columns.model_dump()}, HealthWindow)


@pytest.mark.parametrize("record", [SIGNAL, WINDOW])
def test_a_record_of_the_last_release_is_read_as_the_same_values(record: Any) -> None:
    old = encode_released(record)
    assert not old.startswith(encode(record)[:10])
    assert decode(old, type(record)) == record
    assert current_body(old, type(record)) == current_body(encode(record), type(record)) == encode(record)[10:]


@pytest.mark.parametrize("record", [SIGNAL, WINDOW])
def test_the_last_release_reads_no_columns_so_its_readers_are_replaced_before_its_writers(record: Any) -> None:
    schema = fastavro.parse_schema(released(type(record))[RELEASED])
    buffer = io.BytesIO(encode(record)[10:])
    try:
        values = fastavro.schemaless_reader(buffer, parsed_schema(type(record)), schema)
    except SchemaResolutionError:
        return
    assert len(values["priority"]) != len(values["layer_id"]), "which its validation refused"


def test_lists_written_by_hand_are_accepted_and_checked() -> None:
    by_hand = {**{name: value for name, value in SIGNAL.model_dump().items() if name not in ("columns", "sampling")}}
    assert validate({**by_hand, **SIGNAL.lists()}, HealthSignals) == SIGNAL
    for wrong, message in (
        ({"metrics": {"norm": [0.1, math.nan]}}, "finite number"),
        ({"metrics": {"norm": [0.1, "x"]}}, "valid number"),
        ({"priority": [0.0, -1.0]}, "greater than or equal to 0"),
        ({"survival": [0.0, 2.0]}, "less than or equal to 1"),
    ):
        with pytest.raises(RecordError, match=message):
            validate({**by_hand, **SIGNAL.lists(), **wrong}, HealthSignals)


def test_bytes_cut_short_are_no_record() -> None:
    for record in (SIGNAL, WINDOW):
        data = encode(record)
        for end in range(10, len(data), max(1, len(data) // 50)):
            with pytest.raises((DecodeError, RecordError)):
                decode(data[:end], type(record))


def test_entries_have_none_for_what_was_not_measured() -> None:
    assert entries(np.array([0.5, np.nan])) == [0.5, None]
    assert SIGNAL.lists()["metrics"] == {"norm": [0.1, None], "seeds": [2.0, 0.0]}
