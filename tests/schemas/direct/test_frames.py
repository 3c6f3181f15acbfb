"""Layer frames read into a matrix: the same numbers and the same refusals as the general way."""

import re
from typing import Any

import numpy as np
import pytest

from tamiyo.schemas.codec import HEADER, decode, encode
from tamiyo.schemas.direct.blocks import CANDIDATES, MOST_BYTES, Remembered
from tamiyo.schemas.direct.frames import LayerFrame, decode_frame
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.kafka import MAX_READ_BYTES
from tamiyo.schemas.telemetry import (
    OPTIONAL_HEALTH,
    CacheHitRates,
    Frame,
    KernelPerformance,
    LayerHealth,
    ModelPerformance,
)

COMMON: dict[str, Any] = {"run_id": "run-1", "step": 120, "epoch": 2, "time_ms": 1_700_000_000_000}
COMPANIONS = ["telemetry.layer.kernel_performance", "telemetry.layer.health_signals"]


def execution(layers: list[str], **fields: Any) -> KernelPerformance:
    """Return an execution frame whose columns have values of their own."""
    n = len(layers)
    columns = {
        "seed_id": list(range(n)),
        "chunk_id": [0] * n,
        "execution_latency_ms": [0.5 + 0.125 * row for row in range(n)],
        "cache_hit_rate": [1.0] * n,
        "error_count": [3] * n,
        "total_executions": [100 * row for row in range(n)],
        "activation_variance": [1e-300 * row for row in range(n)],
        "dead_neuron_ratio": [0.25] * n,
        "avg_correlation": [-0.5] * n,
    }
    return KernelPerformance(**{**COMMON, "companions": COMPANIONS, "layer_id": layers, **columns, **fields})


def health(layers: list[str], **fields: Any) -> LayerHealth:
    """Return a learning frame; some of its layers have no growth score, none a contribution."""
    n = len(layers)
    columns = {
        "gradient_norm": [0.1 * row for row in range(n)],
        "update_ratio": [1e-3] * n,
        "growth_score": [None if row % 3 == 1 else -1.5 * row for row in range(n)],
        "contribution": [None] * n,
        "kernel_load": [0.5] * n,
        "alpha": [1.0] * n,
        "dormant_seeds": [2] * n,
        "active_seeds": [0] * n,
        "fossilized_seeds": [1] * n,
        "error_seeds": [0] * n,
        "parameters": [4160 + 70_000 * row for row in range(n)],
        "kernel_parameters": [0] * n,
        "learning_rate_scale": [1.0] * n,
    }
    return LayerHealth(**{**COMMON, "layer_id": layers, **columns, **fields})


LAYERS = ["fc", "layers.1", "layers.1", "block/2:a-b"]
FRAMES = {
    "execution": execution(LAYERS),
    "final": execution(LAYERS, final=True, step=2**53, epoch=0),
    "one layer": execution(["fc"]),
    "2,000 layers": health([f"layers.{row}" for row in range(2_000)]),
    "health": health(LAYERS),
    "all measured": health(LAYERS, growth_score=[1.0, -2.0, 0.0, 5e-324], contribution=[0.1, 0.2, 0.3, 0.4]),
    "latencies": health(LAYERS, kernel_latency_ms=[None, 0.25, None, None], base_latency_ms=[None] * 4),
    "a twin": health(
        LAYERS,
        twin_gain=[None, None, 0.1, None],
        twin_steps=[None, None, 300, None],
        twin_probability=[None, None, 0.25, None],
    ),
    "large counts": health(LAYERS, parameters=[0, 63, 64, 2**53]),
}


def columns_of(record: Any) -> dict[str, list[float]]:
    """Return the columns of a record as the matrix has them, NaN where not measured."""
    names = [name for name in type(record).model_fields if name not in {*Frame.model_fields, "layer_id"}]
    columns = {name: [float("nan") if v is None else float(v) for v in getattr(record, name)] for name in names}
    return {name: each for name, each in columns.items() if name not in OPTIONAL_HEALTH or not np.isnan(each).all()}


def assert_same(found: LayerFrame, record: Any) -> None:
    """Compare a frame read directly with the record."""
    assert found.kind is type(record)
    for name in ("run_id", "step", "epoch", "time_ms", "companions", "final", "layer_id"):
        assert getattr(found, name) == getattr(record, name)
    expected = columns_of(record)
    assert found.names == tuple(expected)
    np.testing.assert_array_equal(found.values, np.array([*expected.values()]))


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_has_the_numbers_of_its_record(name: str) -> None:
    data = encode(FRAMES[name])
    for _ in range(2):  # the second time, constant columns are remembered
        found = decode_frame(data, type(FRAMES[name]))
        assert isinstance(found, LayerFrame)
        assert_same(found, FRAMES[name])


def test_what_is_not_a_frame_of_layers_is_decoded_in_the_general_way() -> None:
    records: list[Frame] = [
        CacheHitRates(**COMMON, hits=1, misses=0, evictions=0, hit_rate=1.0, entries=1, capacity=8),
        ModelPerformance(**COMMON, train_loss=0.5),
    ]
    for record in records:
        assert decode_frame(encode(record), type(record)) == record


@pytest.mark.parametrize(
    "record",
    [
        execution([]),  # no layers: nothing to put into a matrix
        execution(["größe"]),  # a letter on which engines for regular expressions may differ
        health(["fc"], parameters=[2**62]),  # more than a float64 keeps exactly
    ],
    ids=["no layers", "letters", "a large count"],
)
def test_unusual_frames_are_decoded_in_the_general_way(record: Frame) -> None:
    assert decode_frame(encode(record), type(record)) == record


def test_every_frame_has_its_own_numbers_where_networks_alternate() -> None:
    networks = [[f"net{number}.{row}" for row in range(3 + number % 2)] for number in range(3 * CANDIDATES)]
    records = [health(layers, parameters=[len(layers) + row for row, _ in enumerate(layers)]) for layers in networks]
    for record in [*records, *reversed(records)]:
        found = decode_frame(encode(record), LayerHealth)
        assert isinstance(found, LayerFrame)
        assert_same(found, record)


@pytest.mark.parametrize("name", ["execution", "health", "a twin"])
@pytest.mark.parametrize("value", [0x00, 0x01, 0x02, 0x7F, 0x80, 0xFF])
def test_any_changed_byte_has_the_effect_that_it_has_in_the_general_way(name: str, value: int) -> None:
    """Every byte is replaced: lengths, branches, exponents (NaN, infinity), letters, the end of each array."""
    data, kind = encode(FRAMES[name]), type(FRAMES[name])
    for place in range(HEADER, len(data)):
        _assert_same_outcome(data[:place] + bytes([value]) + data[place + 1 :], kind)


@pytest.mark.parametrize("name", ["execution", "health"])
def test_frames_that_are_cut_or_longer_are_refused_as_in_the_general_way(name: str) -> None:
    data, kind = encode(FRAMES[name]), type(FRAMES[name])
    for end in range(0, len(data), 7):
        _assert_same_outcome(data[:end], kind)
    _assert_same_outcome(data + b"\0", kind)
    _assert_same_outcome(None, kind)
    _assert_same_outcome(data + bytes(MAX_READ_BYTES), kind)


def words_of(error: SchemaError) -> str:
    """Return an error's message without the address of the object that it names."""
    return re.sub(" at 0x[0-9a-f]+", "", str(error))


def _assert_same_outcome(data: bytes | None, kind: type[Frame]) -> None:
    try:
        expected: Any = decode(data, kind)
    except SchemaError as error:
        expected = error
    try:
        found: Any = decode_frame(data, kind)
    except SchemaError as error:
        found = error
    if isinstance(found, LayerFrame):
        assert_same(found, expected)
    elif isinstance(expected, SchemaError):
        assert (type(found), words_of(found)) == (type(expected), words_of(expected))
    else:
        assert repr(found) == repr(expected)


def test_what_is_remembered_has_a_bound() -> None:
    remembered = Remembered()
    block = bytes(MOST_BYTES // 10)
    for number in range(5):
        remembered.add("layer_id", bytes([number]) + block, [str(number)])
    assert remembered.find("layer_id", b"\0" + block, 0) is None
    assert remembered.find("layer_id", b"\4" + block, 0) == (["4"], len(block) + 1)
    for number in range(CANDIDATES + 1):
        remembered.add("companions", bytes([number]), [])
    assert remembered.find("companions", b"\0", 0) is None
