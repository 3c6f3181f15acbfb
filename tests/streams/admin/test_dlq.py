"""Dead letters: counted, shown, and republished exactly once."""

import dataclasses
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
from tamiyo.schemas.topics import CACHE_HIT_RATES, SIGNALS, WINDOWS, Topic
from tamiyo.streams import cli
from tamiyo.streams.admin import redrive
from tamiyo.streams.admin.dead_letter import DeadLetter, DeadLetterPartition
from tamiyo.streams.admin.dead_letters import DeadLetters
from tamiyo.streams.admin.redrive import CLAIM_S, Redrive
from tamiyo.streams.admin.topic_table import TopicTable
from tamiyo.streams.admin.topic_tail import follow
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.headers import (
    POISON_HEADER,
    POSITIONS_HEADER,
    REASON_HEADER,
    REDRIVEN_HEADER,
    SOURCE_HEADER,
    STAGE_HEADER,
    TIME_HEADER,
    Headers,
)
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.runtime.oversized import cut, dead_letter_of
from tamiyo.streams.stages.base import Incoming, Output, Reject
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
    assert run(monkeypatch, "redrive", "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["dry_run"], sum(each["letters"] for each in planned["selected"])) == (True, 4)
    assert not any(planned["results"].values())
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


OWN: Headers = [("trace", b"1"), ("trace", b"\xff"), ("empty", b""), ("null", None), ("big", bytes(300_000))]


def reject_message(kafka: KafkaSettings, names: TopicNames, source: Incoming, *, late: bool = False) -> None:
    """Write a dead letter as a stage does, from the message that it rejects."""
    topic, (key, value, headers) = message_of(Reject(source, "unusable", late=late), "windows", b"a=1")
    producer = AwaitedProducer(kafka)
    producer.produce(names.full(topic), value, key, partition=source.partition, headers=headers)
    producer.flush()


@pytest.mark.parametrize(("key", "value"), [(None, None), (b"", b""), (None, b"x"), (b"run-7", None)])
def test_nulls_and_the_producers_headers_come_back(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: bytes | None,
    value: bytes | None,
) -> None:
    log = open_log(where)
    reserved: Headers = [(REASON_HEADER, b"mine"), (f"{REASON_HEADER}-too", b"")]
    reject_message(where, names, Incoming(TOPIC.name, 2, 5, 0, None, value, key, (*OWN, *reserved)))
    assert run(monkeypatch, "show", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["key"] == (None if key is None else key.decode())
    assert shown["bytes"] == (None if value is None else value.hex())
    assert shown["reason"] == "unusable"
    assert shown["headers"][:4] == [["trace", "1"], ["trace", "\\xff"], ["empty", ""], ["null", None]]
    assert run(monkeypatch, "show") == 0
    out = capsys.readouterr().out
    assert ("no key" in out) is (key is None)
    assert "header  null: no value" in out
    assert len(out) < 2_000
    assert run(monkeypatch, "redrive", "-y") == 0
    (back,) = log.read(TOPIC.name)
    assert (back.key, back.value) == (key, value)
    place = f"{TOPIC.dead_letters}:2:0".encode()
    assert list(back.raw_headers) == [*OWN, *reserved, (REDRIVEN_HEADER, place)]

    # Rejected and sent back once more, it has one mark of a redrive, the newest.
    reject_message(where, names, Incoming(TOPIC.name, 2, 6, 0, None, back.value, back.key, back.raw_headers))
    assert run(monkeypatch, "redrive", "-y") == 0
    again = log.read(TOPIC.name)[-1]
    marks = [each for name, each in again.raw_headers if name == REDRIVEN_HEADER]
    assert marks == [f"{TOPIC.dead_letters}:2:3".encode()]  # after a claim and a receipt
    assert list(again.raw_headers)[:-1] == [*OWN, *reserved]


def test_a_stages_own_headers_do_not_come_back(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With them, intake would take the copy for an output of its own when it restarts."""
    headers = ((STAGE_HEADER, b"intake"), (POSITIONS_HEADER, b"a=3"), ("trace", b"1"))
    reject_message(where, names, Incoming(SIGNALS.name, 2, 5, 0, None, GOOD, b"run-7", headers))
    assert run(monkeypatch, "show", "--json") == 0
    assert [STAGE_HEADER, "intake"] in json.loads(capsys.readouterr().out)["headers"]
    assert run(monkeypatch, "redrive", "-y") == 0
    (back,) = open_log(where).read(SIGNALS.name)
    assert [name for name, _ in back.raw_headers] == ["trace", REDRIVEN_HEADER]


def test_what_was_too_large_to_keep_is_not_sent_back(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = Incoming(TOPIC.name, 2, 5, 0, None, b"x" * 5_000, b"run")
    output = Output(SIGNALS, number("run", 0, 1), "id", source)
    place = Incoming(TOPIC.name, 2, 0, 0, None)
    by_time = dataclasses.replace(output, source=None)
    of_several = dataclasses.replace(output, topic=WINDOWS)  # of several signals
    letters = [
        message_of(Reject(source, "bad"), "intake", b""),
        (TOPIC.dead_letters, cut(message_of(Reject(source, "bad"), "intake", b"")[1])),
        dead_letter_of(output, "intake", "OutputTooLarge: one", place, b""),
        dead_letter_of(by_time, "intake", "OutputTooLarge: other", place, b""),
        dead_letter_of(of_several, "windows", "OutputTooLarge: third", place, b""),
    ]
    producer = AwaitedProducer(where)
    for topic, (key, value, headers) in letters:
        producer.produce(names.full(topic), value, key, partition=2, headers=headers)
    producer.flush()
    assert run(monkeypatch, "redrive", TOPIC.name, "--yes") == 0
    assert "3 stay: sent back, they would change nothing" in capsys.readouterr().out
    sent = open_log(where).read(TOPIC.name)
    assert [each.value for each in sent] == [b"x" * 5_000] * 2  # the output's input makes it again
    assert run(monkeypatch, "show", TOPIC.name) == 0
    shown = capsys.readouterr().out
    assert f"5000 bytes were too large to keep; they are at {TOPIC.name}:2:5" in shown


def test_late_messages_are_handled_like_rejected_ones(
    where: KafkaSettings,
    names: TopicNames,
    open_log: Callable[[KafkaSettings], KafkaLog],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = open_log(where)
    for late in (False, True):
        reject_message(where, names, Incoming(SIGNALS.name, 2, 5, 0, None, b"x" * (1 + late), b"run-7", ()), late=late)
    assert run(monkeypatch, "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(each["topic"], each["late"], each["letters"]) for each in rows] == [
        (SIGNALS.name, False, 1),
        (SIGNALS.name, True, 1),
    ]
    assert run(monkeypatch, "list", SIGNALS.late) == 0
    assert f"{SIGNALS.name}.late " in capsys.readouterr().out
    for name, sizes in ((SIGNALS.name, [1, 2]), (SIGNALS.dead_letters, [1]), (names.full(SIGNALS.late), [2])):
        assert run(monkeypatch, "show", name, "--json") == 0
        assert [len(json.loads(line)["bytes"]) // 2 for line in capsys.readouterr().out.splitlines()] == sizes
    for name, late in ((SIGNALS.name, False), (SIGNALS.late, True)):
        assert run(monkeypatch, "show", name, "--json", "--at", "2:0") == 0
        assert json.loads(capsys.readouterr().out)["late"] is late
    assert run(monkeypatch, "redrive", SIGNALS.late, "-y") == 0
    (back,) = log.read(SIGNALS.name)
    assert (back.partition, back.value) == (2, b"xx")
    assert back.headers == {REDRIVEN_HEADER: f"{SIGNALS.late}:2:0"}
    assert run(monkeypatch, "redrive", "-y") == 0
    assert "1 sent back" in capsys.readouterr().out
    assert run(monkeypatch, "redrive", "-y") == 0
    assert "nothing to send back" in capsys.readouterr().out
    assert len(log.read(SIGNALS.name)) == 2


def test_tail_shows_a_redrives_notes_as_what_they_are(
    where: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject_message(where, names, Incoming(TOPIC.name, 2, 5, 0, None, None, None, tuple(OWN)))
    assert run(monkeypatch, "redrive", "-y") == 0
    letter, claim, receipt = follow(TOPIC.dead_letters, where, names, beginning=True, forever=False)
    assert (letter.value, letter.key) == (None, None)
    assert (letter.headers["trace"], letter.headers["null"]) == (["1", "\\xff"], None)
    assert TopicTable(TOPIC.dead_letters, 80).row(letter).plain.split()[1:] == ["-", "-", "windows", "unusable"]
    assert TopicTable(TOPIC.dead_letters, 80).row(claim).plain.endswith("(redrive claim)")
    assert claim.value is not None
    assert (claim.value["redrive"], claim.value["letters"]) == ("claim", [0])
    assert receipt.value == {"redrive": "receipt", "letters": [0]}


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
        (partition,) = dead_letters.partitions([TOPIC.dead_letters])
        crashing = Crashes(dead_letters, where)
        crashing.at, crashing.after = at, after
        with pytest.raises(KeyboardInterrupt):
            list(crashing.send(partition, partition.waiting))
        (partition,) = dead_letters.partitions([TOPIC.dead_letters])
        assert len(partition.waiting) == 4
        assert list(Redrive(dead_letters, where).send(partition, partition.waiting)) == [("claimed", 4)]
    assert run(monkeypatch, "redrive", "--yes") == 1  # call again later
    with DeadLetters(where, names) as dead_letters:
        (partition,) = dead_letters.partitions([TOPIC.dead_letters])
        again = Redrive(dead_letters, where, clock_ms=later)
        assert list(again.send(partition, partition.waiting)) == [(result, 4)]
        (partition,) = dead_letters.partitions([TOPIC.dead_letters])
        assert partition.waiting == []
    assert [each.value for each in log.read(TOPIC.name)] == [value for value, _ in REJECTED]


def test_of_two_concurrent_redrives_only_the_first_claim_sends(
    where: KafkaSettings, names: TopicNames, open_log: Callable[[KafkaSettings], KafkaLog]
) -> None:
    log = open_log(where)
    reject(where, names, REJECTED)
    with DeadLetters(where, names) as mine, DeadLetters(where, names) as yours:
        (partition,), (other,) = mine.partitions([TOPIC.dead_letters]), yours.partitions([TOPIC.dead_letters])

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
        (partition,) = dead_letters.partitions([TOPIC.dead_letters])
        nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
        with pytest.raises(BrokerError, match="call again, nothing is published twice"):
            list(Redrive(dead_letters, nowhere).send(partition, partition.waiting))
        assert len(partition.waiting) == 1
