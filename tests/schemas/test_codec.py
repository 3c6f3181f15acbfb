"""The codec: what goes in comes out, and nothing else comes out."""

import io

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamiyo.schemas.codec import HEADER, decode, encode, header, parsed_schema, validate
from tamiyo.schemas.errors import DecodeError, RecordError
from tamiyo.schemas.kafka import MAX_READ_BYTES
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import KernelPerformance, ModelPerformance
from tamiyo.schemas.topics import CATALOGUE
from tests.support.records import records

RECORDS = [topic.record for topic in CATALOGUE]
PERFORMANCE = KernelPerformance(
    run_id="run", step=10, time_ms=1_000, layer_id=["a", "b"], execution_latency_ms=[0.25, 0.5]
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(data=st.data())
def test_every_record_survives_the_wire(record: type[Record], data: st.DataObject) -> None:
    original = data.draw(records(record))
    assert decode(encode(original), record) == original


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    missing=st.integers(0, 5),
)
def test_mutated_bytes_are_refused_or_valid(flips: list[tuple[int, int]], missing: int) -> None:
    data = bytearray(encode(PERFORMANCE))
    for place, value in flips:
        data[place % len(data)] = value
    try:
        decoded = decode(bytes(data[: len(data) - missing]), KernelPerformance)
    except (DecodeError, RecordError):
        return
    assert len(decoded.execution_latency_ms) == len(decoded.layer_id)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, ModelPerformance)


def test_missing_foreign_oversized_and_trailing_bytes_have_their_own_error() -> None:
    with pytest.raises(DecodeError, match="no value"):
        decode(None, ModelPerformance)
    with pytest.raises(DecodeError, match="expected a ModelPerformance"):
        decode(encode(PERFORMANCE), ModelPerformance)
    with pytest.raises(DecodeError, match="more bytes follow"):
        decode(encode(PERFORMANCE) + b"x", KernelPerformance)
    with pytest.raises(DecodeError, match="expected at most 16777216 bytes"):
        decode(bytes(MAX_READ_BYTES + 1), KernelPerformance)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_values_out_of_range_name_their_field(value: float) -> None:
    buffer = io.BytesIO()
    buffer.write(header(KernelPerformance))
    values = {**PERFORMANCE.model_dump(), "execution_latency_ms": [0.1, value]}
    fastavro.schemaless_writer(buffer, parsed_schema(KernelPerformance), values)
    with pytest.raises(RecordError, match=r"KernelPerformance\.execution_latency_ms\.1"):
        decode(buffer.getvalue(), KernelPerformance)


def test_an_absurd_array_length_is_refused_without_memory() -> None:
    # Avro: run_id, step, epoch, time_ms, no companions, not final, then a block of 2^40 layer ids and nothing more.
    count = b"\x80\x80\x80\x80\x80\x40"
    with pytest.raises(DecodeError, match="EOFError"):
        decode(header(KernelPerformance) + b"\x02r" + b"\x00" * 5 + count, KernelPerformance)


def test_the_specifications_defaults_fill_columns_left_out() -> None:
    assert PERFORMANCE.model_dump(include=set(KernelPerformance.model_fields) - {"run_id", "step", "time_ms"}) == {
        "epoch": 0,
        "companions": [],
        "final": False,
        "layer_id": ["a", "b"],
        "execution_latency_ms": [0.25, 0.5],
        "seed_id": [0, 0],
        "chunk_id": [0, 0],
        "cache_hit_rate": [1.0, 1.0],
        "error_count": [0, 0],
        "total_executions": [1, 1],
        "activation_variance": [0.0, 0.0],
        "dead_neuron_ratio": [0.0, 0.0],
        "avg_correlation": [0.5, 0.5],
    }


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(RecordError, match="execution_latency_ms has 1 entries for 2 layers"):
        validate({**PERFORMANCE.model_dump(), "execution_latency_ms": [0.1]}, KernelPerformance)


def test_a_foreign_reader_needs_only_the_schema_file() -> None:
    schema = fastavro.schema.load_schema("schemas/avro/KernelPerformance.avsc")
    values = fastavro.schemaless_reader(io.BytesIO(encode(PERFORMANCE)[HEADER:]), schema, None)
    assert KernelPerformance.model_validate(values) == PERFORMANCE


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        ([2], b"\0" * 4, "expected 8 bytes"),
        ([10**9, 10], b"", "expected at most 4000000 elements"),
        ([1], b"\0\0\xc0\x7f", "finite"),
    ],
)
def test_tensors_must_fit_and_be_finite(shape: list[int], data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tensor(shape=shape, data=data)
