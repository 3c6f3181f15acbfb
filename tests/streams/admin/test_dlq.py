"""Dead letters: counted, shown, and republished exactly once."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CACHE_HIT_RATES, SIGNALS, Topic
from tamiyo.streams import cli
from tamiyo.streams.admin import redrive
from tamiyo.streams.admin.dead_letter import DeadLetter, DeadLetterPartition
from tamiyo.streams.admin.dead_letters import DeadLetters
from tamiyo.streams.admin.redrive import CLAIM_S, REDRIVEN_HEADER, Redrive
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import POISON_HEADER, REASON_HEADER, SOURCE_HEADER, STAGE_HEADER, TIME_HEADER
from tests.support.kafka_log import KafkaLog
from tests.support.pairs import number

TOPIC = CACHE_HIT_RATES


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def where(request: pytest.FixtureRequest, names: TopicNames, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """Return settings of each broker, with the two topics; the command line finds it in the environment."""
    if request.param == "real":
        kafka = KafkaSettings(bootstrap_servers=request.getfixturevalue("real_kafka"))
    else:
        kafka = request.getfixturevalue("kafka")
    Topics(kafka, names, [TOPIC, SIGNALS]).create()
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    return kafka


def reject(
    kafka: KafkaSettings,
    names: TopicNames,
    values: Sequence[tuple[bytes | None, str]],
    *,
    topic: Topic = TOPIC,
    partition: int = 2,
) -> None:
    """Write values with reasons to the dead-letter topic, as a stage does."""
    producer = AwaitedProducer(kafka)
    for index, (value, reason) in enumerate(values):
        headers = {
            STAGE_HEADER: b"intake",
            SOURCE_HEADER: f"{topic.name}:{partition}:{100 + index}".encode(),
            REASON_HEADER: reason.encode(),
            TIME_HEADER: b"1700000000000",
            **({POISON_HEADER: b"1"} if reason.startswith("poison") else {}),
        }
        producer.produce(names.full(topic.dead_letters), value, b"run-7", partition=partition, headers=headers.items())
    producer.flush()


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tamiyo", "dlq", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


GOOD = encode(number("run-7", 1, 5))
REJECTED = [
    (b"\x1b[2Jnot avro", "DecodeError: expected a CacheHitRates, got 12 bytes"),
    (GOOD, "step 7 is beyond the largest expected, 5"),
    (GOOD, "step 12 is beyond the largest expected, 5"),
    (None, "poison: alone, it ended the process 3 times; last KeyError: 'x'"),
]


def test_dead_letters_are_counted_by_reason_and_shown(
    where: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list") == 0
    assert capsys.readouterr().out.strip() == "no dead letters"
    reject(where, names, REJECTED)
    reject(where, names, [(b"x", "[red]no[/red]\x1b[31m layer 'conv1'")], topic=SIGNALS)
    assert run(monkeypatch, "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(each["topic"], each["reason"], each["letters"]) for each in rows] == [
        (SIGNALS.name, "[red]no[/red]\x1b[… layer …", 1),
        (TOPIC.name, "step … is beyond the largest expected, …", 2),
        (TOPIC.name, "DecodeError", 1),
        (TOPIC.name, "poison", 1),
    ]
    assert run(monkeypatch, "list") == 0
    table = capsys.readouterr().out
    assert "[red]no[/red]\\x1b" in table
    assert "\x1b" not in table

    assert run(monkeypatch, "show", TOPIC.name) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2Jnot avro" in shown.replace("\\\\", "\\")
    assert f"rejected by intake, from {TOPIC.name}:2:101" in shown
    assert '"hits": 5' in shown
    assert "no bytes" in shown

    assert run(monkeypatch, "show", f"{names.prefix}{TOPIC.dead_letters}", "--json", "-n", "3") == 0
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert bytes.fromhex(first["bytes"]) == REJECTED[0][0]
    assert first["undecodable"].startswith("expected a CacheHitRates")
    assert (second["record"]["hits"], second["key"], second["source"]) == (5, "run-7", f"{TOPIC.name}:2:101")
    assert (third["poison"], third["redriven"]) == (False, False)
    assert run(monkeypatch, "show", TOPIC.name, "--json", "--reason", "POISON") == 0
    (only,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (only["poison"], only["bytes"]) == (True, None)
    assert run(monkeypatch, "show", TOPIC.name, "--json", "--at", f"2:{first['offset']}") == 0
    assert [json.loads(line)["offset"] for line in capsys.readouterr().out.splitlines()] == [first["offset"]]


def test_dead_letters_are_republished_once_however_often_called(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = open_log(where)
    reject(where, names, REJECTED)
    assert run(monkeypatch, "redrive", "--dry-run") == 0
    assert "4 dead letters would be sent back; nothing was done" in capsys.readouterr().out
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(SystemExit(1)))
    assert run(monkeypatch, "redrive") == 1
    assert log.read(TOPIC.name) == []

    assert run(monkeypatch, "redrive", TOPIC.name, "--reason", "step", "-n", "1", "--yes") == 0
    assert "1 sent back" in capsys.readouterr().out
    (back,) = log.read(TOPIC.name)
    assert (back.partition, back.key, back.value) == (2, b"run-7", GOOD)
    assert back.headers == {REDRIVEN_HEADER: f"{TOPIC.dead_letters}:2:1"}
    for sent in (3, 0, 0):
        assert run(monkeypatch, "redrive", "--yes") == 0
        out = capsys.readouterr().out
        assert ("3 sent back" in out) if sent else ("nothing to send back" in out)
    assert [each.value for each in log.read(TOPIC.name)] == [GOOD, REJECTED[0][0], GOOD, None]

    # A message that is rejected again is another dead letter.
    reject(where, names, REJECTED[:1])
    assert run(monkeypatch, "list", "--json") == 0
    counts = {each["reason"]: (each["letters"], each["redriven"]) for each in json.loads(capsys.readouterr().out)}
    assert counts["DecodeError"] == (2, 1)
    assert run(monkeypatch, "redrive", "-y") == 0
    assert len(log.read(TOPIC.name)) == 5


class Crashes(Redrive):
    """Crashes before or after it writes a note of one kind."""

    at = "receipt"
    after = False

    def _note(self, partition: DeadLetterPartition, kind: str, batch: Sequence[DeadLetter], **fields: Any) -> int:
        if kind == self.at and not self.after:
            raise KeyboardInterrupt
        offset = super()._note(partition, kind, batch, **fields)
        if kind == self.at:
            raise KeyboardInterrupt
        return offset


def later() -> int:
    return time.time_ns() // 1_000_000 + round(1000 * CLAIM_S) + 1


@pytest.mark.parametrize(("at", "after", "result"), [("receipt", False, "found"), ("claim", True, "sent")])
def test_a_later_redrive_finishes_one_that_crashed(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    after: bool,
    result: str,
) -> None:
    log = open_log(where)
    reject(where, names, REJECTED)
    with DeadLetters(where, names) as dead_letters:
        (partition,) = dead_letters.partitions([TOPIC])
        crashing = Crashes(dead_letters, where)
        crashing.at, crashing.after = at, after
        with pytest.raises(KeyboardInterrupt):
            list(crashing.send(partition, partition.waiting))
        (partition,) = dead_letters.partitions([TOPIC])
        assert len(partition.waiting) == 4
        assert list(Redrive(dead_letters, where).send(partition, partition.waiting)) == [("claimed", 4)]
    assert run(monkeypatch, "redrive", "--yes") == 1  # call again later
    with DeadLetters(where, names) as dead_letters:
        (partition,) = dead_letters.partitions([TOPIC])
        again = Redrive(dead_letters, where, clock_ms=later)
        assert list(again.send(partition, partition.waiting)) == [(result, 4)]
        (partition,) = dead_letters.partitions([TOPIC])
        assert partition.waiting == []
    assert [each.value for each in log.read(TOPIC.name)] == [value for value, _ in REJECTED]


def test_of_two_concurrent_redrives_only_the_first_claim_sends(
    where: KafkaSettings, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog]
) -> None:
    log = open_log(where)
    reject(where, names, REJECTED)
    with DeadLetters(where, names) as mine, DeadLetters(where, names) as yours:
        (partition,), (other,) = mine.partitions([TOPIC]), yours.partitions([TOPIC])

        class Interrupted(Redrive):
            """Another redrive runs between its claim and its read of the claims."""

            def _note(
                self, partition: DeadLetterPartition, kind: str, batch: Sequence[DeadLetter], **fields: Any
            ) -> int:
                offset = super()._note(partition, kind, batch, **fields)
                if kind == "claim":
                    assert list(Redrive(yours, where).send(other, other.waiting)) == [("claimed", 4)]
                return offset

        assert list(Interrupted(mine, where).send(partition, partition.waiting)) == [("sent", 4)]
        assert list(Redrive(yours, where).send(other, other.dead_letters)) == [("done", 4)]
    assert len(log.read(TOPIC.name)) == 4


def test_a_failed_delivery_is_an_error_that_advises_to_call_again(
    names: TopicNames, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Topics(kafka, names, [TOPIC]).create()
    reject(kafka, names, REJECTED[:1])
    monkeypatch.setattr(redrive, "DELIVERY_S", 0.5)
    with DeadLetters(kafka, names) as dead_letters:
        (partition,) = dead_letters.partitions([TOPIC])
        nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
        with pytest.raises(BrokerError, match="call again, nothing is published twice"):
            list(Redrive(dead_letters, nowhere).send(partition, partition.waiting))
        assert len(partition.waiting) == 1
