"""Records as people see them: columns and tensors as lists; and which of a topic's records are printed."""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.columns import ColumnarRecord
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, MODEL_PERFORMANCE, Topic
from tamiyo.streams import cli
from tamiyo.streams.admin.topic_tail import TopicLine, follow, to_json_values
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import REASON_HEADER
from tests.support.factories import make_graph, make_window
from tests.support.runs import decision
from tests.support.telemetry import model_performance, signal

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


class Installation:
    """A broker with two runs' frames: step n of both is published n seconds after `began_ms`."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self.kafka = kafka
        self.names = names
        self.began_ms = 1000 * int(time.time() - 1_000)
        self._producer = AwaitedProducer(kafka)

    def send(self, topic: Topic | str, run_id: str, step: int, value: bytes | None = None, **more: Any) -> None:
        name = topic if isinstance(topic, str) else topic.name
        value = encode(model_performance(step, run_id=run_id)) if value is None else value
        time_ms = self.began_ms + 1000 * step
        self._producer.produce(self.names.full(name), value, run_id, timestamp_ms=time_ms, **more)
        self._producer.flush()

    def steps(self, topic: Topic | str = MODEL_PERFORMANCE, **options: Any) -> list[tuple[str, int]]:
        values = {"beginning": True, "forever": False, **options}
        name = topic if isinstance(topic, str) else topic.name
        return [_step(each) for each in follow(name, self.kafka, self.names, **values)]


def _step(line: TopicLine) -> tuple[str, int]:
    assert line.value is not None
    return str(line.run_id), line.value["step"]


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def installation(request: pytest.FixtureRequest, names: TopicNames) -> Installation:
    real = request.param == "real"
    servers = request.getfixturevalue("real_kafka") if real else request.getfixturevalue("kafka").bootstrap_servers
    kafka = KafkaSettings(bootstrap_servers=servers)
    if real:
        Topics(kafka, names, (MODEL_PERFORMANCE, DECISIONS)).create(partitions=4)
    made = Installation(kafka, names)
    for step in range(1, 21):
        for run_id in ("one", "two"):
            made.send(MODEL_PERFORMANCE, run_id, step, partition=step % 4 if run_id == "one" else 1)
    return made


def test_the_last_records_of_all_partitions_in_order_of_time(installation: Installation) -> None:
    assert [step for _, step in installation.steps(last=5)] == [18, 19, 19, 20, 20]
    assert installation.steps(last=3, run_id="one") == [("one", 18), ("one", 19), ("one", 20)]
    assert len(installation.steps(last=1_000)) == 40
    assert installation.steps(last=5, limit=2, run_id="two") == [("two", 16), ("two", 17)]
    assert installation.steps(last=5, run_id="on") == []  # not the beginning of an id


def test_records_since_a_time(installation: Installation) -> None:
    since_ms = installation.began_ms + 18_500
    assert sorted(installation.steps(since_ms=since_ms)) == [("one", 19), ("one", 20), ("two", 19), ("two", 20)]
    assert installation.steps(since_ms=since_ms, run_id="one", last=9) == [("one", 19), ("one", 20)]
    assert installation.steps(since_ms=since_ms + 60_000) == []
    assert len(installation.steps(since_ms=0)) == 40


@pytest.mark.parametrize("options", [{"last": 2}, {"since_ms": 18_500}, {"beginning": False}], ids=str)
def test_then_it_follows(installation: Installation, options: dict[str, Any]) -> None:
    if "since_ms" in options:
        options = {"since_ms": installation.began_ms + options["since_ms"]}
    earlier = 0 if "beginning" in options else 2
    stop = threading.Event()
    lines = follow(
        MODEL_PERFORMANCE.name, installation.kafka, installation.names, run_id="one", stopped=stop.is_set,
        **{"beginning": True, "forever": True, **options},
    )  # fmt: skip
    found: list[tuple[str, int]] = []
    ready = threading.Event()

    def read() -> None:
        for each in lines:
            found.append(_step(each))
            if len(found) >= earlier:  # of two partitions: either may be read first
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    step = 100
    try:
        if earlier:
            assert ready.wait(20)
        deadline = time.monotonic() + 20
        while len(found) <= earlier and time.monotonic() < deadline:
            step += 1  # one that starts at the end may start after some of them
            installation.send(MODEL_PERFORMANCE, "one", step)
            installation.send(MODEL_PERFORMANCE, "two", step)
            time.sleep(0.05)
    finally:
        stop.set()
        reader.join(20)
    assert sorted(found[:earlier]) == [("one", 19), ("one", 20)][:earlier]
    assert all(run_id == "one" and step > 100 for run_id, step in found[earlier:])
    assert len(found) > earlier


def test_dead_letters_of_a_run(installation: Installation) -> None:
    for topic in (MODEL_PERFORMANCE.dead_letters, MODEL_PERFORMANCE.late):
        for step in (1, 2):
            installation.send(topic, "one", step, b"\xff", headers=[(REASON_HEADER, b"not Avro")])
            installation.send(topic, "two", step)
        found = list(
            follow(topic, installation.kafka, installation.names, beginning=True, forever=False, run_id="one", last=1)
        )
        assert [(each.run_id, each.headers[REASON_HEADER], each.timestamp_ms) for each in found] == [
            ("one", "not Avro", installation.began_ms + 2_000)
        ]


def test_a_topic_that_is_missing(kafka: KafkaSettings, names: TopicNames) -> None:
    with pytest.raises(BrokerError, match="tamiyo topics create"):
        next(follow(MODEL_PERFORMANCE.late, kafka, names, beginning=True, forever=True, last=3))
    with pytest.raises(ConfigurationError, match="in the catalogue"):
        next(follow("coffee", kafka, names, beginning=True, forever=True))


@pytest.fixture
def tail(
    kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Run `tamiyo tail` on the embedded broker; return the lines of standard output, or of standard error."""
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)

    def run(*arguments: str, status: int = 0) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["tamiyo", "tail", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert int(ended.value.code or 0) == status
        captured = capsys.readouterr()
        return (captured.err if status else captured.out).splitlines()

    return run


@pytest.mark.parametrize("installation", ["embedded"], indirect=True)
def test_the_command_prints_a_table_and_json(installation: Installation, tail: Callable[..., list[str]]) -> None:
    one = decision("d1", run_id="mnist1d-a-long-name", step=7)
    installation.send(DECISIONS, one.run_id, 30, encode(one))
    installation.send(DECISIONS, "other", 31, encode(decision("d2", run_id="other", step=8)))
    header, date, *rows = tail(DECISIONS.name, "--last", "2", "--no-follow", "--table")
    assert header.split()[:9] == ["time", "run", "step", "type", "layer", "blueprint", "conf", "veto", "policy"]
    assert date.endswith("UTC")
    assert [row.split()[1:4] for row in rows] == [["mnist1d-", "7", "load"], ["other", "8", "load"]]
    assert one.decision_id[:8] in rows[0].split()
    (row,) = tail(DECISIONS.name, "--run", "other", "-F", "--table", "--full", "--since", "1h")[2:]
    assert decision("d2").decision_id in row.split()
    (text,) = tail(DECISIONS.name, "--run-id", one.run_id, "-F")
    assert json.loads(text)["value"] == to_json_values(one)
    (text,) = tail(DECISIONS.name, "--run", one.run_id, "-F", "--short")
    assert json.loads(text)["value"]["decision_id"] == one.decision_id[:8]
    assert tail(DECISIONS.name, "-F", "--since", "2999-01-01") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--end", "--last", "3"], "--end starts after the newest record"),
        (["--since", "yesterday"], "--since yesterday: expected a time like 2026-05-01T10:00"),
        (["--since", "-5m"], "--since -5m: expected a time"),
        (["--run", "a", "--run-id", "a"], "--run alone"),
        (["--run", "a b"], "--run: expected letters"),
    ],
)
def test_wrong_options_are_explained(tail: Callable[..., list[str]], arguments: list[str], words: str) -> None:
    (message,) = tail(MODEL_PERFORMANCE.name, *arguments, status=1)
    assert words in message
