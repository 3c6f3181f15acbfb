"""A command that changes something and is interrupted, or fails half-way, names what to do next."""

import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from tamiyo.schemas.errors import BrokerError, RegistryError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import SIGNALS
from tamiyo.streams import cli
from tamiyo.streams.admin import growth, redrive, runs, schema_registry
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.stages.base import Incoming
from tests.streams.admin.test_dlq import reject_message

Fail = Callable[..., NoReturn]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tamiyo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def create(patch: pytest.MonkeyPatch, fail: Fail) -> tuple[str, ...]:
    patch.setattr(Topics, "create", fail)
    return ("topics", "create")


def grow(patch: pytest.MonkeyPatch, fail: Fail) -> tuple[str, ...]:
    patch.setattr(growth.Growth, "check", lambda self, quiet_s: None)
    patch.setattr(growth.Growth, "run", fail)
    return ("topics", "grow", "--partitions", "8", "--yes")


def forget(patch: pytest.MonkeyPatch, fail: Fail) -> tuple[str, ...]:
    def find(self: Any, *_: Any, **__: Any) -> None:
        self.found, self.live = [runs.KeptRun(b"run", 1)], []

    patch.setattr(runs.FinishedRuns, "__init__", find)
    patch.setattr(runs.FinishedRuns, "forget", fail)
    return ("runs", "forget", "--yes")


def register(patch: pytest.MonkeyPatch, fail: Fail) -> tuple[str, ...]:
    def some(*_: Any) -> Iterator[tuple[str, int]]:
        yield "first-value", 1
        fail()

    patch.setattr(schema_registry, "register", some)
    return ("schemas", "register", "--url", "http://127.0.0.1:1")


COMMANDS = {
    create: "it creates what is missing",
    grow: "give the command again with --partitions 8, before any run starts: it goes on",
    forget: "what is forgotten is not found any more",
    register: "what is registered stays as it is",
}


@pytest.fixture(autouse=True)
def broker(kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (BrokerError("the broker is away"), 1), (RegistryError("no", temporary=True), 1)],
    ids=["ctrl-c", "broker", "registry"],
)
def test_what_is_left_half_done_is_named_with_how_to_go_on(
    command: Callable[[pytest.MonkeyPatch, Fail], tuple[str, ...]],
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    assert run(monkeypatch, *command(monkeypatch, fail)) == status
    printed = " ".join(capsys.readouterr().err.split())
    assert COMMANDS[command] in printed
    assert "Traceback" not in printed
    assert str(error) in printed


def test_an_interrupted_redrive_goes_on_when_it_is_called_again(
    kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Topics(kafka, names, [SIGNALS]).touch()
    reject_message(kafka, names, Incoming(SIGNALS.name, 2, 5, 0, None, b"v", b"run", ()))
    note = redrive.Redrive._note

    def interrupted(self: Any, partition: Any, kind: str, *more: Any, **fields: Any) -> int:
        if kind == "receipt":  # the dead letters are sent, and nothing shows it
            raise KeyboardInterrupt
        return note(self, partition, kind, *more, **fields)

    monkeypatch.setattr(redrive.Redrive, "_note", interrupted)
    assert run(monkeypatch, "dlq", "redrive", "--yes") == 130
    assert "give the command again in a minute: nothing is sent back twice" in capsys.readouterr().err
    monkeypatch.setattr(redrive.Redrive, "_note", note)
    later = SimpleNamespace(time_ns=lambda: time.time_ns() + 61 * 10**9, monotonic=time.monotonic)
    monkeypatch.setattr(redrive, "time", later)
    assert run(monkeypatch, "dlq", "redrive", "--yes") == 0
    assert "1 sent back by an earlier redrive that crashed" in " ".join(capsys.readouterr().out.split())


def test_topics_that_two_processes_create_with_other_numbers_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    topics = Topics(KafkaSettings(bootstrap_servers="127.0.0.1:1"), TopicNames(), [SIGNALS])
    monkeypatch.setattr(topics, "embedded", lambda: False)
    monkeypatch.setattr(topics, "replication", lambda wanted: 1)
    monkeypatch.setattr(topics, "_wait_until_visible", lambda wanted: None)
    first, late, dead = (each.name for each in topics._plan)
    seen = iter([{}, {first: range(4), late: range(8), dead: range(4)}])
    monkeypatch.setattr(topics, "_metadata", lambda: SimpleNamespace(topics=next(seen), brokers=1))
    monkeypatch.setattr("tamiyo.streams.admin.topics._of", lambda present, name: present.get(name, ()))
    done = SimpleNamespace(result=lambda: None)
    admin = SimpleNamespace(create_topics=lambda wanted, request_timeout: {each.topic: done for each in wanted})
    monkeypatch.setattr(topics, "_admin", admin)
    with pytest.raises(BrokerError, match=r"4 or 8 partitions.*`tamiyo topics grow --partitions 8`"):
        topics.create()
