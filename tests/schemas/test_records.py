"""The rules that a record has for several fields together."""

from typing import Any

import numpy as np
import pytest

from tamiyo.schemas.analysis import STATISTICS, HealthSignals, HealthWindow, ModelGraph
from tamiyo.schemas.codec import validate
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import ModelTopology
from tests.support.factories import make_graph, make_topology, make_window

SIGNALS = {"run_id": "run-1", "signal_id": "s", "source": "t", "step": 0, "time_ms": 0, "layer_id": ["a", "b"]}
TOPOLOGY = make_topology()
GRAPH = make_graph()
WINDOW = make_window()


def columns(count: int) -> dict[str, Any]:
    """Return the statistics of a metric, `count` entries long where three are expected."""
    return {**{name: [1.0] * 3 for name in STATISTICS}, "count": [1] * 3, "slope": [0.0] * count}


@pytest.mark.parametrize(
    ("record", "fields", "message"),
    [
        (TOPOLOGY, {"layers": [TOPOLOGY.layers[0], TOPOLOGY.layers[0]]}, "two layers share one layer_id"),
        (TOPOLOGY, {"edges": [{"source": "nowhere", "target": "layer.0"}]}, "nowhere -> layer.0 names a layer"),
        (TOPOLOGY, {"edges": [{"source": "layer.0", "target": "nowhere"}]}, "layer.0 -> nowhere names a layer"),
        (GRAPH, {"edge_source": [0, 3]}, r"outside 0\.\.2"),
        (GRAPH, {"edge_target": [3, 0]}, r"outside 0\.\.2"),
        (GRAPH, {"edge_target": [1]}, "differ in length"),
        (GRAPH, {"edge_features": Tensor.of(np.zeros((3, 8)))}, "differ in length"),
        (GRAPH, {"node_features": Tensor.of(np.zeros((2, 41)))}, r"expected node_features of \[3, features\]"),
        (GRAPH, {"node_features": Tensor.of(np.zeros(3))}, r"expected node_features of \[3, features\]"),
        (GRAPH, {"health": [1.0]}, "column health has 1 entries for 3 layers"),
        (WINDOW, {"metrics": {"health": columns(2)}}, "slope of metric health has 2 entries for 3 layers"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(record: Record, fields: dict[str, Any], message: str) -> None:
    values = {**record.model_dump(), **{name: plain(value) for name, value in fields.items()}}
    with pytest.raises(RecordError, match=message):
        validate(values, type(record))


def plain(value: Any) -> Any:
    """Return records as their values."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.model_dump() if isinstance(value, Record) else value


def test_records_that_agree_with_themselves_are_accepted() -> None:
    for record, kind in ((TOPOLOGY, ModelTopology), (GRAPH, ModelGraph), (WINDOW, HealthWindow)):
        assert validate(record.model_dump(), kind) == record


@pytest.mark.parametrize("fields", [{"metrics": {"health": [1.0]}}, {"priority": [1.0]}, {"survival": [1.0]}])
def test_every_column_of_signals_has_an_entry_per_layer(fields: dict[str, Any]) -> None:
    agreeing = {"metrics": {"health": [1.0, None]}, "priority": [0.0, 1.0], "survival": [1.0, 0.5]}
    assert validate({**SIGNALS, **agreeing}, HealthSignals).shed == 0
    with pytest.raises(RecordError, match="1 entries for 2 layers"):
        validate({**SIGNALS, **agreeing, **fields}, HealthSignals)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_tensor_is_finite(value: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Tensor.of([0.0, value])
