"""Records as people see them: columns and tensors as lists."""

import json
from typing import Any

import pytest

from tamiyo.schemas.columns import ColumnarRecord
from tamiyo.streams.admin.topic_tail import to_json_values
from tests.support.factories import make_graph, make_window
from tests.support.telemetry import signal

SIGNAL = signal("telemetry.layer.health_signals", 10, {"norm": [0.5, None]}, layers=["a", "b"])


@pytest.mark.parametrize("record", [SIGNAL, make_window(layers=2, growth_score=[None, 0.25])])
def test_columns_are_shown_as_lists_from_which_the_record_can_be_made_again(record: ColumnarRecord) -> None:
    shown: dict[str, Any] = json.loads(json.dumps(to_json_values(record)))
    assert "columns" not in shown
    assert type(record).model_validate(shown) == record


def test_what_was_not_measured_is_null() -> None:
    shown = to_json_values(SIGNAL)
    assert (shown["metrics"], shown["priority"], shown["survival"]) == ({"norm": [0.5, None]}, [0.0, 0.0], [1.0, 1.0])
    window = to_json_values(make_window(layers=2, growth_score=[None, 0.25]))
    assert window["metrics"]["growth_score"]["mean"] == [None, 0.25]
    assert window["metrics"]["growth_score"]["count"] == [0.0, 5.0]


def test_tensors_are_nested_lists() -> None:
    graph = make_graph(layers=2)
    assert to_json_values(graph)["node_features"] == graph.node_features.numpy().tolist()
