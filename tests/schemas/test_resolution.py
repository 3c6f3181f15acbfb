"""Logical types of a foreign writer are read as their base types, with a registry and without."""

import copy
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Iterator
from typing import Any

import fastavro
import pytest

from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects, subject
from tamiyo.schemas.codec import decode, single_object_header, use_registry
from tamiyo.schemas.errors import DecodeError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.resolution import base_types
from tamiyo.schemas.telemetry import ModelPerformance, ModelTopology
from tests.support.factories import make_topology
from tests.support.registry_server import RegistryServer
from tests.support.runs import decision

NAMES = TopicNames()
NOW_MS = 1_767_225_600_123
ID = str(uuid.UUID(int=7))
PERFORMANCE = ModelPerformance(run_id=ID, step=10, time_ms=NOW_MS, train_loss=0.5, steps_since_adaptation=3)


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    """A registry that the process uses."""
    with RegistryServer() as running:
        use_registry(Subjects(Registry(RegistrySettings(url=running.url)), NAMES))
        yield running
    use_registry(None)


def with_type(record: type[Record], name: str, changed: Any) -> dict[str, Any]:
    """Return the schema of a record with another type of one field."""
    schema = copy.deepcopy(avro_schema(record))
    (field,) = [each for each in schema["fields"] if each["name"] == name]
    field["type"] = changed
    field.pop("default", None)
    return schema


def with_field(record: type[Record], changed: Any) -> dict[str, Any]:
    """Return the schema of a record with one more field, at its beginning."""
    schema = copy.deepcopy(avro_schema(record))
    schema["fields"].insert(0, {"name": "extra", "type": changed})
    return schema


def body(schema: dict[str, Any], values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(copy.deepcopy(schema)), values)
    return buffer.getvalue()


def read(server: RegistryServer, record: type[Record], schema: dict[str, Any], values: dict[str, Any]) -> Any:
    """Write values as a foreign client does, and read them."""
    number = server.add(subject(record, NAMES), json.dumps(schema))
    return decode(b"\0" + number.to_bytes(4, "big") + body(schema, values), record)


def long(logical: str) -> dict[str, str]:
    return {"type": "long", "logicalType": logical}


LONGS = ["timestamp-millis", "timestamp-micros", "timestamp-nanos", "time-micros", "anything"]
LONGS += ["local-timestamp-millis", "local-timestamp-micros", "local-timestamp-nanos"]


@pytest.mark.parametrize("logical", LONGS)
def test_a_long_is_read_as_a_number(server: RegistryServer, logical: str) -> None:
    schema = with_type(ModelPerformance, "step", long(logical))
    assert read(server, ModelPerformance, schema, PERFORMANCE.model_dump()) == PERFORMANCE
    schema = with_type(ModelPerformance, "steps_since_adaptation", ["null", long(logical)])
    assert read(server, ModelPerformance, schema, PERFORMANCE.model_dump()) == PERFORMANCE


@pytest.mark.parametrize("logical", ["date", "time-millis", "anything"])
def test_an_int_is_read_as_a_number(server: RegistryServer, logical: str) -> None:
    schema = with_type(ModelPerformance, "step", {"type": "int", "logicalType": logical})
    assert read(server, ModelPerformance, schema, PERFORMANCE.model_dump()) == PERFORMANCE


@pytest.mark.parametrize("logical", ["timestamp-millis", "local-timestamp-millis"])
def test_a_time_in_milliseconds_is_read(server: RegistryServer, logical: str) -> None:
    schema = with_type(ModelPerformance, "time_ms", long(logical))
    assert read(server, ModelPerformance, schema, PERFORMANCE.model_dump()) == PERFORMANCE
    when = datetime.datetime.fromtimestamp(NOW_MS / 1000, datetime.UTC)
    given: Any = when if logical == "timestamp-millis" else when.replace(tzinfo=None)
    assert read(server, ModelPerformance, schema, {**PERFORMANCE.model_dump(), "time_ms": given}) == PERFORMANCE


@pytest.mark.parametrize("logical", ["uuid", "anything"])
def test_a_string_is_read_as_text(server: RegistryServer, logical: str) -> None:
    schema = with_type(ModelPerformance, "run_id", {"type": "string", "logicalType": logical})
    assert read(server, ModelPerformance, schema, PERFORMANCE.model_dump()) == PERFORMANCE


def test_a_decimal_is_read_as_bytes(server: RegistryServer) -> None:
    original = decision()
    for changed in (
        {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2},
        {"type": "bytes", "logicalType": "decimal"},  # without its precision it is not one
    ):
        schema = with_type(AdaptationDecision, "mask", changed)
        number = server.add(subject(AdaptationDecision, NAMES), json.dumps(schema))
        data = body(avro_schema(AdaptationDecision), original.model_dump())
        assert decode(b"\0" + number.to_bytes(4, "big") + data, AdaptationDecision) == original


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ({"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}, decimal.Decimal("1.25")),
        ({"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 9}, decimal.Decimal(7)),
        ({"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}, bytes(12)),
        ({"type": "string", "logicalType": "uuid"}, uuid.UUID(int=1)),
        (long("timestamp-micros"), 5),
        ({"type": "array", "items": {"type": "int", "logicalType": "date"}}, [datetime.date(2026, 1, 1)]),
        ({"type": "map", "values": ["null", long("time-micros")]}, {"a": datetime.time(1, 2), "b": None}),
    ],
    ids=str,
)
def test_fields_that_only_the_writer_has_are_passed_over(server: RegistryServer, changed: Any, value: Any) -> None:
    schema = with_field(ModelPerformance, changed)
    assert read(server, ModelPerformance, schema, {**PERFORMANCE.model_dump(), "extra": value}) == PERFORMANCE


def test_logical_types_of_nested_records_are_read(server: RegistryServer) -> None:
    original = make_topology(2)
    schema = copy.deepcopy(avro_schema(ModelTopology))
    (layers,) = [each for each in schema["fields"] if each["name"] == "layers"]
    for field in layers["type"]["items"]["fields"]:
        if field["name"] == "parameters":
            field["type"] = long("timestamp-micros")
        if field["name"] == "input_shape":
            field["type"] = {"type": "array", "items": long("time-micros")}
    values = original.model_dump()
    assert read(server, ModelTopology, schema, values) == original


@pytest.mark.parametrize(
    "changed",
    [
        long("timestamp-micros"),
        ["null", long("timestamp-nanos")],
        long("local-timestamp-micros"),
        long("time-micros"),
        {"type": "int", "logicalType": "date"},
    ],
    ids=str,
)
@pytest.mark.parametrize("field", ["time_ms", "step_time_ms"])
def test_a_time_in_another_unit_is_refused(server: RegistryServer, field: str, changed: Any) -> None:
    schema = with_type(ModelPerformance, field, changed)
    with pytest.raises(DecodeError, match=f"gives {field} the logical type .*, but it is in milliseconds"):
        read(server, ModelPerformance, schema, {**PERFORMANCE.model_dump(), field: 5})


def test_a_unit_is_compared_only_of_fields_that_are_read(server: RegistryServer) -> None:
    schema = with_field(ModelPerformance, long("timestamp-micros"))
    schema["fields"][0]["name"] = "written_ms"
    assert read(server, ModelPerformance, schema, {**PERFORMANCE.model_dump(), "written_ms": 5}) == PERFORMANCE


@pytest.mark.parametrize("schema", [3, "string", {"type": "record", "fields": 3}, {"type": {"type": None}}, [[[]]]])
def test_what_is_no_schema_of_a_record_is_refused_as_before(server: RegistryServer, schema: Any) -> None:
    number = server.add("s", json.dumps(schema))
    with pytest.raises(DecodeError, match="is not"):
        decode(b"\0" + number.to_bytes(4, "big") + b"x", ModelPerformance)


def test_names_and_defaults_are_left_as_they_are() -> None:
    field = {"name": "logicalType", "type": long("date"), "default": {"logicalType": "x"}, "aliases": ["type"]}
    schema = {"type": "record", "name": "ModelPerformance", "fields": [field]}
    plain = {**field, "type": {"type": "long"}}
    assert base_types(ModelPerformance, schema) == {**schema, "fields": [plain]}


@pytest.mark.parametrize("logical", LONGS)
def test_without_a_registry_a_fingerprint_shows_no_logical_types(logical: str) -> None:
    schema = with_type(ModelPerformance, "step", long(logical))
    data = single_object_header(schema) + body(schema, PERFORMANCE.model_dump())
    assert decode(data, ModelPerformance) == PERFORMANCE
