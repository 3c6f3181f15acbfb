"""Ids and writers' schemas: requested once, cached, and never requested at an attacker's pace."""

import copy
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import fastavro
import pytest

from tamiyo.schemas import codec
from tamiyo.schemas.avro_schema import avro_schema, released
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.client.subjects import BAD_ID_S, REQUEST_S, REQUESTS, Subjects, schema_text, subject
from tamiyo.schemas.codec import HEADER, decode, encode, use_registry
from tamiyo.schemas.errors import DecodeError, RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import CacheHitRates, ModelPerformance
from tamiyo.schemas.topics import CATALOGUE
from tests.support.registry_server import RegistryServer

NAMES = TopicNames(prefix="blue.")
PERFORMANCE = ModelPerformance(run_id="run", step=10, time_ms=1_000, train_loss=0.5, validation_loss=0.75)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


@pytest.fixture
def subjects(server: RegistryServer, clock: Clock) -> Subjects:
    """The catalogue is registered, and the process uses it."""
    for topic in CATALOGUE:
        server.add(subject(topic.record, NAMES), schema_text(topic.record))
    made = Subjects(Registry(RegistrySettings(url=server.url)), NAMES, clock=clock)
    use_registry(made)
    return made


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_registry(None)


def older(record: type[Record], without: str) -> dict[str, Any]:
    """Return the schema of `record` as it may have been before a field came."""
    schema = copy.deepcopy(avro_schema(record))
    schema["fields"] = [field for field in schema["fields"] if field["name"] != without]
    return schema


def body(schema: dict[str, Any], record: Record) -> bytes:
    buffer = io.BytesIO()
    names = {field["name"] for field in schema["fields"]}
    values = {name: value for name, value in record.model_dump().items() if name in names}
    fastavro.schemaless_writer(buffer, fastavro.parse_schema(schema), values)
    return buffer.getvalue()


def framed(schema_id: int, data: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + data


def test_subjects_bear_the_installations_prefix() -> None:
    assert subject(ModelPerformance, NAMES) == "blue.telemetry.model.performance_metrics-value"


def test_confluents_framing_there_and_back(server: RegistryServer, subjects: Subjects) -> None:
    data = encode(PERFORMANCE)
    (own,) = server.subjects[subject(ModelPerformance, NAMES)]
    assert data[:5] == b"\0" + own.to_bytes(4, "big")
    requests = len(server.requests)
    for _ in range(100):
        assert decode(encode(PERFORMANCE), ModelPerformance) == PERFORMANCE
    assert len(server.requests) == requests == 1


def test_both_framings_are_read_with_a_registry_and_one_without(subjects: Subjects) -> None:
    confluent = encode(PERFORMANCE)
    use_registry(None)
    single = encode(PERFORMANCE)
    with pytest.raises(DecodeError, match="set TAMIYO_REGISTRY_URL"):
        decode(confluent, ModelPerformance)
    use_registry(subjects)
    assert decode(single, ModelPerformance) == decode(confluent, ModelPerformance) == PERFORMANCE


def test_a_reader_needs_no_schema_of_its_own_in_the_registry(server: RegistryServer, clock: Clock) -> None:
    # Readers are upgraded first: what they read is registered, what they would write may not be yet.
    use_registry(Subjects(Registry(RegistrySettings(url=server.url)), NAMES, clock=clock))
    schema = older(ModelPerformance, without="throughput")
    data = framed(server.add("s", json.dumps(schema)), body(schema, PERFORMANCE))
    assert decode(data, ModelPerformance) == PERFORMANCE
    with pytest.raises(RegistryError, match="tamiyo schemas register"):
        encode(PERFORMANCE)


def test_an_older_registered_schema_is_resolved(server: RegistryServer, subjects: Subjects) -> None:
    schema = older(ModelPerformance, without="throughput")
    data = framed(server.add(subject(ModelPerformance, NAMES), json.dumps(schema)), body(schema, PERFORMANCE))
    for _ in range(3):
        assert decode(data, ModelPerformance) == PERFORMANCE
    assert len(server.requests) == 1
    with pytest.raises(DecodeError, match="not a ModelPerformance"):
        decode(data[:-1], ModelPerformance)
    with pytest.raises(DecodeError, match="more bytes follow"):
        decode(data + b"\0", ModelPerformance)


def test_an_older_released_schema_is_resolved_without_a_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = older(ModelPerformance, without="throughput")
    data = codec.single_object_header(schema) + body(schema, PERFORMANCE)
    with pytest.raises(DecodeError, match="expected a ModelPerformance"):
        decode(data, ModelPerformance)
    monkeypatch.setattr(codec, "released", lambda _: {"0.0.9": schema})
    codec._released_writers.cache_clear()
    try:
        assert decode(data, ModelPerformance) == PERFORMANCE
        assert decode(encode(PERFORMANCE), ModelPerformance) == PERFORMANCE
    finally:
        codec._released_writers.cache_clear()
    assert released(ModelPerformance)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (schema_text(CacheHitRates), "is a record tamiyo.CacheHitRates"),
        ('"string"', "is not a record"),
        ('{"type": "record"}', "is not an Avro schema"),
        ('{"type": "record", "name": "A", "fields": [{"name": "x", "type": "other.Y"}]}', "other.Y"),
        ("[" * 100_000, "is not an Avro schema"),
    ],
)
def test_a_schema_of_something_else_is_refused(
    server: RegistryServer, subjects: Subjects, text: str, words: str
) -> None:
    data = framed(server.add("s", text), b"\0" * 20)
    for _ in range(3):
        with pytest.raises(DecodeError, match=words):
            decode(data, ModelPerformance)
    assert len(server.requests) == 1


def test_a_schema_that_cannot_be_resolved_is_refused(server: RegistryServer, subjects: Subjects) -> None:
    schema = older(ModelPerformance, without="step")  # which has no default
    data = framed(server.add("s", json.dumps(schema)), body(schema, PERFORMANCE))
    with pytest.raises(DecodeError, match="step"):
        decode(data, ModelPerformance)


def test_hostile_ids_do_not_become_requests(server: RegistryServer, subjects: Subjects, clock: Clock) -> None:
    hostile = [framed(schema_id, b"") for schema_id in range(1_000, 1_200)]
    for data in hostile * 2:
        with pytest.raises(DecodeError):
            decode(data, ModelPerformance)
    assert len(server.requests) == REQUESTS
    # A good id among them is requested soon after.
    schema = older(ModelPerformance, without="throughput")
    data = framed(server.add("s", json.dumps(schema)), body(schema, PERFORMANCE))
    with pytest.raises(DecodeError, match="check who writes to the topic"):
        decode(data, ModelPerformance)
    clock.now += REQUEST_S
    assert decode(data, ModelPerformance) == PERFORMANCE
    assert len(server.requests) == REQUESTS + 1


def test_an_id_that_was_not_known_is_requested_again_later(
    server: RegistryServer, subjects: Subjects, clock: Clock
) -> None:
    schema = older(ModelPerformance, without="throughput")
    coming = len(server.schemas) + 1
    data = framed(coming, body(schema, PERFORMANCE))
    with pytest.raises(DecodeError, match=f"schema {coming} is not in the registry"):
        decode(data, ModelPerformance)
    assert server.add("s", json.dumps(schema)) == coming
    with pytest.raises(DecodeError):
        decode(data, ModelPerformance)
    clock.now += BAD_ID_S
    assert decode(data, ModelPerformance) == PERFORMANCE


def test_known_ids_go_on_working_when_the_registry_is_gone(
    server: RegistryServer, subjects: Subjects, clock: Clock
) -> None:
    subjects.prepare()
    schema = older(ModelPerformance, without="throughput")
    old = framed(server.add("s", json.dumps(schema)), body(schema, PERFORMANCE))
    decode(old, ModelPerformance)
    server.failure = (503, b"gone")
    assert decode(old, ModelPerformance) == decode(encode(PERFORMANCE), ModelPerformance) == PERFORMANCE
    # An id never seen is not the message's fault: it may be good, so it is not a DecodeError, however often.
    for _ in range(2 * REQUESTS):
        with pytest.raises(RegistryError) as away:
            decode(framed(999, b""), ModelPerformance)
        assert away.value.temporary
    server.failure = None
    with pytest.raises(DecodeError):
        decode(framed(999, b""), ModelPerformance)


def test_a_refusal_is_not_repeated_with_every_record(server: RegistryServer, clock: Clock) -> None:
    use_registry(Subjects(Registry(RegistrySettings(url=server.url)), NAMES, clock=clock))
    for _ in range(50):
        with pytest.raises(RegistryError, match="tamiyo schemas register"):
            encode(PERFORMANCE)
    assert len(server.requests) == 1
    server.add(subject(ModelPerformance, NAMES), schema_text(ModelPerformance))
    clock.now += 10
    assert encode(PERFORMANCE)[:1] == b"\0"


def test_threads_send_one_request(server: RegistryServer, subjects: Subjects) -> None:
    threads = [threading.Thread(target=encode, args=(PERFORMANCE,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1


def test_single_object_encoding_is_as_it_was() -> None:
    assert encode(PERFORMANCE)[:HEADER] == codec.header(ModelPerformance)
