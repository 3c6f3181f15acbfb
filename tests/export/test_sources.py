"""Topics and recordings give the same tables, and the same selections of them."""

import warnings
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

import tamiyo.data
from tamiyo.data._names import find, find_topics
from tamiyo.data._reading import UndecodableWarning
from tamiyo.data._tables import all_tables
from tamiyo.schemas.adaptation import ControlCommand
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RecordingError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, CONTROL, DECISIONS, MODEL_PERFORMANCE, WINDOWS
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import END_MARKER, END_MARKER_KEY
from tamiyo.streams.recording.recorder import Recorder
from tamiyo.streams.recording.topic_reader import Selection
from tests.export.support import TIME_MS, as_messages, record_topics, time
from tests.support.factories import make_window
from tests.support.kafka_log import KafkaLog
from tests.support.recordings import make_recording
from tests.support.runs import decision

RUNS = ("run-a", "run-b", "run-c")


@pytest.fixture
def log(kafka: KafkaSettings, names: TopicNames) -> Iterator[KafkaLog]:
    Topics(kafka, names).create(partitions=2, replication=1)
    with closing(KafkaLog(kafka, names)) as opened:
        yield opened


def keyed(table: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_topics_and_their_recording_are_the_same_table(
    log: KafkaLog, kafka: KafkaSettings, names: TopicNames, tmp_path: Path
) -> None:
    made = [decision(f"{run}-{number}", run_id=run, step=number) for number in range(3) for run in RUNS]
    log.publish(DECISIONS, made)
    log.publish(WINDOWS, [make_window(0, run_id=run) for run in RUNS])
    log.publish_bytes(DECISIONS, [(b"run-a", b"garbage")])
    Recorder(tmp_path, kafka, names, Selection()).run()
    for topic in ("decisions", "windows", "windows.model"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            live = tamiyo.data.read(topic, kafka=kafka, prefix=names.prefix)
            recorded = tamiyo.data.read(topic, recording=tmp_path)
        assert live.equals(recorded, check_metadata=True)
        assert live.num_rows > 0
        assert [each.category for each in caught] == [UndecodableWarning] * (2 if topic == "decisions" else 0)
    table = tamiyo.data.read("decisions", kafka=kafka, prefix=names.prefix, run=["run-b", "run-c"])
    assert {*table.column("run_id").to_pylist()} == {"run-b", "run-c"}
    assert table.num_rows == 6
    with pytest.warns(UndecodableWarning, match="1 of 10 messages"):
        joined = tamiyo.data.decisions(kafka=kafka, prefix=names.prefix, columns=["decision_id"])
    assert {*joined.column("decision_id").to_pylist()} == {each.decision_id for each in made}


def test_a_time_is_the_same_cut_of_a_topic_and_of_a_recording(
    log: KafkaLog, kafka: KafkaSettings, names: TopicNames, tmp_path: Path
) -> None:
    log.publish(DECISIONS, [decision(str(number)) for number in range(4)])
    log.publish(CONTROL, [ControlCommand(run_id="run-1", time_ms=0)])
    Recorder(tmp_path, kafka, names, Selection()).run()
    for source in ({"kafka": kafka, "prefix": names.prefix}, {"recording": tmp_path}):
        read: Any = lambda topic, source=source, **more: tamiyo.data.read(topic, **source, **more).num_rows  # noqa: E731
        assert read("decisions", since=timedelta(hours=1)) == read("decisions", until=datetime.now(UTC)) == 4
        assert read("decisions", since="2100-01-01") == read("decisions", until="2020-01-01") == 0
        assert read("control", since="2100-01-01") == 1


def test_times_of_a_recording_cut_at_the_first_such_offset(tmp_path: Path) -> None:
    times = [TIME_MS, TIME_MS + 2000, TIME_MS + 1000, TIME_MS + 3000]
    values = [encode(decision(str(number), step=number)) for number in range(4)]
    made = as_messages(DECISIONS, values)
    make_recording(tmp_path, [each.__class__(**_fields(each, ms)) for each, ms in zip(made, times, strict=True)])
    read: Any = lambda **more: tamiyo.data.read("decisions", recording=tmp_path, columns=["step"], **more).to_pydict()  # noqa: E731
    assert read(since=time(TIME_MS + 1500))["step"] == [1, 2, 3]
    assert read(until=time(TIME_MS + 1500))["step"] == [0]
    assert read(since="2023-11-14T22:13:21", until="2023-11-14T22:13:23+00:00")["step"] == [1, 2]


def _fields(message: Any, timestamp_ms: int) -> dict[str, Any]:
    names = ("topic", "partition", "offset", "key", "value", "headers")
    return {**{name: getattr(message, name) for name in names}, "timestamp_ms": timestamp_ms}


def test_end_markers_of_a_replay_are_no_messages(tmp_path: Path) -> None:
    marker = as_messages(DECISIONS, [decision(), None], headers=tuple(END_MARKER), key=END_MARKER_KEY)
    make_recording(tmp_path, marker)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tamiyo.data.read("decisions", recording=tmp_path).num_rows == 1


def test_only_some_columns(tmp_path: Path) -> None:
    folder = record_topics(tmp_path, {DECISIONS: [decision()]})
    table = tamiyo.data.read("decisions", recording=folder, columns=["type", "run_id"])
    assert table.to_pylist() == [{"type": "load_kernel", "run_id": "run-1"}]
    with pytest.raises(ConfigurationError, match="has no column no_such; it has run_id, decision_id"):
        tamiyo.data.read("decisions", recording=folder, columns=["no_such"])
    with pytest.raises(ConfigurationError, match="decisions has no column no_such"):
        tamiyo.data.decisions(recording=folder, columns=["no_such"])


def test_problems_are_explained(tmp_path: Path, kafka: KafkaSettings) -> None:
    with pytest.raises(RecordingError, match="is not a recording"):
        tamiyo.data.read("decisions", recording=tmp_path)
    with pytest.raises(ConfigurationError, match=r"recording and kafka exclude each other"):
        tamiyo.data.read("decisions", recording=tmp_path, kafka=kafka)
    with pytest.raises(BrokerError, match="has no topic tamiyo"):
        tamiyo.data.read("decisions", bootstrap_servers=kafka.bootstrap_servers, prefix="empty.")
    folder = tmp_path / "part"
    make_recording(folder, as_messages(WINDOWS, [make_window()]), selection=Selection(topics=(WINDOWS.name,)))
    with pytest.raises(RecordingError, match=r"was recorded without tamiyo.adaptation.decisions; it has tamiyo.health"):
        tamiyo.data.read("decisions", recording=folder)
    with pytest.raises(ConfigurationError, match="since='yesterday': expected a datetime, a timedelta"):
        tamiyo.data.read("windows", recording=folder, since="yesterday")
    path = next(folder.glob("*.avro"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordingError, match="was changed after it was recorded"):
        tamiyo.data.read("windows", recording=folder)


@pytest.mark.parametrize("name", [*BY_NAME])
def test_the_last_word_of_a_topic_stands_for_it(name: str) -> None:
    assert find(name.rpartition(".")[2], BY_NAME) == find(f"live.{name}", BY_NAME, "live.") == name


def test_tables_are_found_by_their_last_words() -> None:
    assert find("windows.model", all_tables()) == f"{WINDOWS.name}.model"
    assert find("health.windows", all_tables()) == WINDOWS.name
    assert tamiyo.data.schema("performance_metrics") == all_tables()[MODEL_PERFORMANCE.name].schema
    assert tamiyo.data.schema("joined").names[:2] == ["run_id", "decision_id"]


def test_names_of_no_topic_are_explained() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean tamiyo\.rewards"):
        find("reward", BY_NAME)
    with pytest.raises(
        ConfigurationError, match=r"may be tamiyo\.health\.signals\.model or tamiyo\.health\.windows\.model"
    ):
        find("model", all_tables())
    with pytest.raises(ConfigurationError, match="rejected messages have no type"):
        find("tamiyo.rewards.dlq", BY_NAME)
    for text in ("", ".", "..", "../../etc", "\x1b[2J", "x" * 10_000):
        with pytest.raises(ConfigurationError, match="no topic"):
            find(text, BY_NAME)


def test_topics_come_without_repeats_in_the_order_of_the_catalogue() -> None:
    assert find_topics(["decisions", "windows", DECISIONS.name]) == (WINDOWS, DECISIONS)
    assert find_topics(["windows", "all"]) == CATALOGUE


@pytest.mark.kafka
def test_a_broker_that_finds_offsets_by_time_gives_the_same_cut(
    real_kafka: str, names: TopicNames, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names).create(partitions=1, replication=1)
    producer = Producer({"bootstrap.servers": real_kafka})
    times = [now := round(datetime.now(UTC).timestamp() * 1000), now + 2000, now + 1000, now + 3000]
    for number, ms in enumerate(times):
        value = encode(decision(str(number), step=number))
        producer.produce(names.full(DECISIONS.name), value, b"run-1", timestamp=ms)
    producer.flush(30)
    Recorder(tmp_path, kafka, names, Selection()).run()
    for cut, steps in (({"since": 1500}, [1, 2, 3]), ({"until": 1500}, [0]), ({"since": 9000}, [])):
        times_of: Any = {name: time(now + ms) for name, ms in cut.items()}
        live = tamiyo.data.read("decisions", kafka=kafka, prefix=names.prefix, **times_of)
        assert live["step"].to_pylist() == steps
        assert live.equals(tamiyo.data.read("decisions", recording=tmp_path, **times_of))
