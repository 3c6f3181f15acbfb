"""Every record of every topic is in its tables, value for value, whatever it has."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.data import read
from tamiyo.data._columns import record_columns
from tamiyo.data._decoding import Counts, decoded
from tamiyo.data._exporting import Exporter
from tamiyo.data._files import Format
from tamiyo.data._sources import RecordingSource
from tamiyo.data._tables import MESSAGE_FIELDS, all_tables, tables_of
from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.analysis import STATISTICS, HealthSignals
from tamiyo.schemas.columns import Columns
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import (
    BY_NAME,
    CATALOGUE,
    CHECKPOINTS,
    DECISIONS,
    KERNEL_PERFORMANCE,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    SIGNALS,
    WINDOWS,
    Topic,
)
from tests.export.support import NAMES, TIME_MS, as_messages, expected_model_rows, expected_rows, record_topics, time
from tests.support.factories import make_window
from tests.support.records import records
from tests.support.runs import decision

each_topic = pytest.mark.parametrize("name", NAMES)


def through_parquet(batch: Any) -> list[dict[str, Any]]:
    """Write a batch to Parquet and return what is read back; its schema must be the same."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_batches([batch]), buffer)
    table = pq.read_table(buffer)
    assert same_schema(table.schema, batch.schema)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def same_schema(found: Any, wanted: Any) -> bool:
    """Compare types and descriptions; Parquet renames what is inside a map."""
    described = [[field.metadata for field in schema] + [schema.metadata] for schema in (found, wanted)]
    return bool(found.equals(wanted)) and described[0] == described[1]


def rows_of(topic: Topic, found: list[Record], table: int = 0) -> list[dict[str, Any]]:
    counts = Counts()
    messages = list(decoded(as_messages(topic, found), topic, counts))
    assert (counts.messages, counts.undecodable, counts.first_problem) == (len(found), 0, "")
    return through_parquet(tables_of(topic)[table].batch(messages))


def without_message(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in [field.name for field in MESSAGE_FIELDS]}


@each_topic
@given(st.data())
@settings(max_examples=8, deadline=None, database=None)
def test_records_are_read_back_equal(name: str, data: st.DataObject) -> None:
    topic = BY_NAME[name]
    found = data.draw(st.lists(records(topic.record), min_size=1, max_size=3))
    assert [*map(without_message, rows_of(topic, found))] == [row for each in found for row in expected_rows(each)]
    if topic in (SIGNALS, WINDOWS):
        wanted = [row for each in found for row in expected_model_rows(each)]
        assert [*map(without_message, rows_of(topic, found, 1))] == wanted


def test_each_number_stands_at_its_layer_metric_and_statistic() -> None:
    columns = Columns.of(["a", "b"], np.arange(2 * 7 * 3, dtype=float).reshape(2, 7, 3))
    window = make_window(0, layers=3).model_copy(update={"columns": columns})
    rows = {(row["layer_id"], row["metric"]): row for row in rows_of(WINDOWS, [make_window(1, layers=0), window])}
    assert [rows["layer.0", "a"][name] for name in STATISTICS] == [0, 3, 6, 9, 12, 15, 18]
    assert [rows["layer.2", "b"][name] for name in STATISTICS] == [23, 26, 29, 32, 35, 38, 41]
    assert rows[None, None]["mean"] is None


def test_masks_and_tensors_stay_with_their_decisions() -> None:
    several = [
        decision("a", mask=b"\1\0\2", probabilities=Tensor.of([0.5, 0.0, 0.5])),
        decision("b", mask=b"\0\1", probabilities=Tensor.of([[0.0], [1.0]])),
    ]
    first, second = rows_of(DECISIONS, several)
    assert (first["mask"], second["mask"]) == ([True, False, True], [False, True])
    assert (first["probabilities"], second["probabilities"]) == ([0.5, 0.0, 0.5], [0.0, 1.0])


def test_a_record_without_layers_is_one_row() -> None:
    values = {"run_id": "r", "step": 1, "time_ms": TIME_MS, "layer_id": []}
    columns = {name: [] for name in LayerHealth.model_fields if name in TABLE_COLUMNS}
    assert rows_of(LAYER_HEALTH, [LayerHealth(**values, **columns)])[0]["gradient_norm"] is None
    shed = HealthSignals(**values, signal_id="s", source="a", shed=7, columns=Columns(names=["health"]))
    (row,) = rows_of(SIGNALS, [shed])
    assert (row["shed"], row["layer_id"], row["metric"], row["value"]) == (7, None, None, None)
    whole, empty, also = make_window(0, layers=2), make_window(1, layers=0), make_window(2, layers=1)
    found = rows_of(WINDOWS, [whole, empty, also])
    assert [*map(without_message, found)] == [row for each in (whole, empty, also) for row in expected_rows(each)]
    assert sum(row["window_id"] == empty.window_id for row in found) == 1


TABLE_COLUMNS = set(LayerHealth.model_fields) - {
    "run_id",
    "step",
    "epoch",
    "time_ms",
    "companions",
    "final",
    "layer_id",
}


def test_layers_without_metrics_have_rows_too() -> None:
    bare = make_window(0, layers=2).model_copy(update={"columns": Columns()})
    assert [row["layer_id"] for row in rows_of(WINDOWS, [bare])] == ["layer.0", "layer.1"]
    assert all(row["metric"] is None and row["count"] is None for row in rows_of(WINDOWS, [bare]))


def test_columns_that_a_producer_leaves_out_have_the_specification_s_defaults() -> None:
    frame = KernelPerformance(run_id="r", step=1, time_ms=TIME_MS, layer_id=["a"], execution_latency_ms=[0.5])
    values = {**frame.model_dump(), "seed_id": [], "avg_correlation": []}
    raw = KernelPerformance.model_construct(**values)
    (row,) = rows_of(KERNEL_PERFORMANCE, [raw])
    assert (row["seed_id"], row["avg_correlation"]) == (0, 0.5)


def test_message_columns() -> None:
    messages = as_messages(MODEL_PERFORMANCE, [frame(1)] * 3, partition=4)
    odd = [messages[0], *as_messages(MODEL_PERFORMANCE, [frame(1)], key=b"\xffother", timestamp_ms=2**62)]
    rows = through_parquet(tables_of(MODEL_PERFORMANCE)[0].batch([*decoded(odd, MODEL_PERFORMANCE, Counts())]))
    assert (rows[0]["partition"], rows[0]["offset"], rows[0]["timestamp"], rows[0]["key"]) == (
        4,
        0,
        time(TIME_MS),
        None,
    )
    assert (rows[1]["key"], rows[1]["timestamp"]) == ("\\xffother", None)


def frame(step: int, **more: Any) -> ModelPerformance:
    return ModelPerformance(**{"run_id": "r", "step": step, "time_ms": TIME_MS, "train_loss": 1.0, **more})


@pytest.mark.parametrize("name", [*all_tables()])
def test_every_column_is_described_and_types_do_not_depend_on_the_data(name: str, tmp_path: Path) -> None:
    table = all_tables()[name]
    assert all(field.metadata[b"description"] for field in table.schema)
    assert len(set(table.schema.names)) == len(table.schema)
    record_topics(tmp_path / "recording", {})
    empty = read(name, recording=tmp_path / "recording")
    assert (empty.num_rows, empty.schema) == (0, table.schema)


def test_every_field_of_a_record_has_a_column() -> None:
    for topic in CATALOGUE:
        made = {"layer_id", "metric", "value", "priority", "survival", "columns", "sampling", "model_metrics"}
        names = {name for table in tables_of(topic) for name in table.schema.names} | {"time_ms"}
        missing = set(topic.record.model_fields) - names
        assert missing <= (made if topic in (SIGNALS, WINDOWS) else set()), topic.name
    assert {each.source for each in record_columns(DECISIONS.record)} == set(DECISIONS.record.model_fields)


def test_values_that_break_the_contract_are_shown_as_they_are() -> None:
    loss = frame(1).model_copy(update={"train_loss": float("nan"), "throughput": float("inf"), "parameters": 2**62})
    text = frame(2).model_copy(update={"run_id": "../../etc/passwd\x1b[2J\n\u202e" + "x" * 5000})
    found = rows_of(MODEL_PERFORMANCE, [loss, text])
    assert found[0]["train_loss"] != found[0]["train_loss"]
    assert (found[0]["throughput"], found[0]["parameters"]) == (float("inf"), 2**62)
    assert found[1]["run_id"] == text.run_id


@pytest.mark.parametrize(
    ("topic", "record", "problem"),
    [
        (MODEL_PERFORMANCE, b"\xc3\x01nonsense", "expected a ModelPerformance"),
        (MODEL_PERFORMANCE, None, "no value"),
        (MODEL_PERFORMANCE, frame(1).model_copy(update={"time_ms": 2**61}), "up to the year 2100"),
        (DECISIONS, decision().model_copy(update={"orders": {"*": -1}}), "up to the year 2100"),
        (
            DECISIONS,
            decision().model_copy(update={"probabilities": decision().probabilities.model_copy(update={"shape": [9]})}),
            "no tensor of",
        ),
        (WINDOWS, make_window(0).model_copy(update={"layer_id": ["only"]}), "expected 21 columns of 7 numbers"),
    ],
)  # fmt: skip
def test_messages_that_no_row_can_be_made_of_are_counted(topic: Topic, record: Any, problem: str) -> None:
    counts = Counts()
    assert list(decoded(as_messages(topic, [record]), topic, counts)) == []
    assert (counts.messages, counts.undecodable) == (1, 1)
    assert counts.first_problem.startswith(f"{topic.name}:0:0: ")
    assert problem in counts.first_problem


def test_messages_that_remove_a_key_are_counted_apart() -> None:
    counts = Counts()
    assert list(decoded(as_messages(CHECKPOINTS, [None]), CHECKPOINTS, counts)) == []
    assert (counts.removals, counts.undecodable) == (1, 0)


@pytest.mark.parametrize("format", [Format.CSV, Format.JSONL])
def test_text_formats_have_the_same_values(format: Format, tmp_path: Path) -> None:
    proposed = Action.model_construct(type="load_kernel", layer_id='a","b', blueprint=None)
    changes = {"value": float("nan"), "explanation": 'a "quoted"\nline, =1+1', "orders": {"*": TIME_MS}}
    odd = decision("odd").model_copy(update={**changes, "proposed": proposed})
    folder = record_topics(tmp_path / "recording", {DECISIONS: [odd, decision("plain", type="no_op", layer=None)]})
    Exporter(RecordingSource(folder), tmp_path, format=format).run([DECISIONS])
    path = tmp_path / f"{DECISIONS.name}.{format}"
    typed = read("decisions", recording=folder).to_pylist()
    if format is Format.JSONL:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows[0]["orders"] == {"*": "2023-11-14T22:13:20.000Z"}
        assert (rows[0]["value"], rows[0]["mask"]) == (None, [True, True])
    else:
        rows = csv_rows(path)
        assert json.loads(rows[0]["mask"]) == [True, True]
        assert json.loads(rows[0]["proposed"])["layer_id"] == 'a","b'
        assert (rows[1]["layer_id"], rows[0]["value"]) == (None, "nan")
        assert rows[0]["time"] == "1970-01-01 00:00:00.001Z"
    assert [row["explanation"] for row in rows] == [row["explanation"] for row in typed]
    assert [*rows[0]] == [*typed[0]]


def csv_rows(path: Path) -> list[dict[str, Any]]:
    """Read a CSV file with polars, all columns as texts."""
    import polars

    rows: list[dict[str, Any]] = polars.read_csv(path, infer_schema=False).to_dicts()
    return rows


@pytest.mark.parametrize("format", [*Format])
def test_an_empty_topic_becomes_a_file_with_its_columns(format: Format, tmp_path: Path) -> None:
    folder = record_topics(tmp_path / "recording", {})
    result = Exporter(RecordingSource(folder), tmp_path, format=format).run([WINDOWS])
    assert [file.path.name for file in result.files] == [f"{WINDOWS.name}.{format}", f"{WINDOWS.name}.model.{format}"]
    path = tmp_path / f"{WINDOWS.name}.{format}"
    if format is Format.PARQUET:
        assert same_schema(pq.read_schema(path), tables_of(WINDOWS)[0].schema)
    elif format is Format.CSV:
        assert path.read_text().strip().replace('"', "").split(",") == tables_of(WINDOWS)[0].schema.names
    else:
        assert path.read_text() == ""


def test_polars_and_pandas_read_what_is_written(tmp_path: Path) -> None:
    import pandas
    import polars

    window = make_window(0, layers=2)
    folder = record_topics(tmp_path / "recording", {WINDOWS: [window], DECISIONS: [decision()]})
    Exporter(RecordingSource(folder), tmp_path).run([WINDOWS, DECISIONS], join=True)
    frame = polars.read_parquet(tmp_path / f"{WINDOWS.name}.parquet")
    assert frame.filter(polars.col("metric") == "gradient_norm")["mean"].to_list() == [0.3, 0.3]
    assert polars.read_parquet(tmp_path / f"{DECISIONS.name}.parquet")["mask"].to_list() == [[True, True]]
    assert pandas.read_parquet(tmp_path / "decisions.parquet").loc[0, "type"] == "load_kernel"
