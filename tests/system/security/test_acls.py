"""Permissions: the whole flow with a user for each process that has the listed permissions and no others."""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tamiyo.evaluation.common.simulated_runs import Load, frames, topology
from tamiyo.host._client.publisher import KafkaPublisher
from tamiyo.host._client.receiver import KafkaReceiver
from tamiyo.schemas.errors import BrokerError, BrokerRefused
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, DECISIONS, EXPERIENCE, GRAPHS, REWARDS, TELEMETRY, TOPOLOGY
from tamiyo.streams import cli
from tamiyo.streams.admin.acls import ROLES, Grant, grants, missing
from tamiyo.streams.admin.control import ControlTopic, dry_run
from tamiyo.streams.admin.topic_tail import follow
from tamiyo.streams.admin.topics import Topics, plan
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.runtime.worker import Worker
from tamiyo.streams.settings import LearnerSettings, WorkerSettings
from tamiyo.streams.stages.registry import STAGES
from tests.support.secure_broker import LockedKafka

NAMES = TopicNames(prefix="acl.")
LOAD = Load(runs=1, layers=3, frames=40, name="acl")
TIMEOUT_S = 60.0


def binding(role: str, grant: Grant) -> AclBinding:
    """Return a grant as Kafka's admin clients write it."""
    kind = ResourceType.TOPIC if grant.kind == "topic" else ResourceType.GROUP
    operation, allow = AclOperation[grant.operation], AclPermissionType.ALLOW
    return AclBinding(kind, grant.name, ResourcePatternType.LITERAL, f"User:{role}", "*", operation, allow)


class Permissions:
    """Grants and revokes permissions."""

    def __init__(self, kafka: LockedKafka) -> None:
        self._admin = AdminClient(kafka.admin.librdkafka())

    def add(self, role: str, wanted: Iterable[Grant]) -> None:
        for done in self._admin.create_acls([binding(role, each) for each in wanted]).values():
            done.result()

    def take(self, role: str, grant: Grant) -> None:
        b = binding(role, grant)
        pattern = AclBindingFilter(
            b.restype, b.name, b.resource_pattern_type, b.principal, b.host, b.operation, b.permission_type
        )
        for done in self._admin.delete_acls([pattern]).values():
            assert len(list(done.result())) == 1


@pytest.fixture(scope="module")
def permissions(locked: LockedKafka) -> Permissions:
    """A user for each role, with its grants; the operator has created the topics."""
    given = Permissions(locked)
    for role in ROLES:
        locked.add_user(role)
        given.add(role, grants(role, NAMES))
    until(lambda: not missing(grants("operator", NAMES), locked.user("operator")))
    Topics(locked.user("operator"), NAMES).create(partitions=1)
    consumer = Consumer(locked.admin.librdkafka(**{"group.id": "waits"}))
    places = [TopicPartition(each.name, 0) for each in plan(CATALOGUE, NAMES)]
    until(lambda: [consumer.get_watermark_offsets(each, timeout=5) for each in places])  # their leaders take a moment
    consumer.close()
    return given


def until(condition: object, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until `condition()` holds; ignores what the broker refuses meanwhile."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if condition():  # type: ignore[operator]
                return
        except (BrokerError, KafkaException):
            pass
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def records(kafka: KafkaSettings, topic: str) -> list[dict[str, object]]:
    return [line.value for line in follow(topic, kafka, NAMES, beginning=True, forever=False)]


@pytest.fixture
def running(
    locked: LockedKafka, permissions: Permissions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Run every stage and the learner, each as its own user."""
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}")
    learner = LearnerLoop(LearnerSettings(), locked.user("learner"), NAMES)
    workers = [Worker({name: entry}, WorkerSettings(), locked.user(name), NAMES) for name, entry in STAGES.items()]
    loop = asyncio.new_event_loop()
    failures: list[BaseException] = []

    def run(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    async def stages() -> None:
        await asyncio.gather(*(worker.run() for worker in workers))

    threads = [
        threading.Thread(target=run, args=(learner.run,)),
        threading.Thread(target=run, args=(lambda: loop.run_until_complete(stages()),)),
    ]
    for thread in threads:
        thread.start()
    yield
    learner.stop()
    for worker in workers:
        loop.call_soon_threadsafe(worker.stop)
    for thread in threads:
        thread.join(30)
    assert [str(each) for each in failures] == []
    assert not any(thread.is_alive() for thread in threads)
    loop.close()


@pytest.mark.kafka
@pytest.mark.flow
@pytest.mark.timeout(240)
def test_the_whole_flow_with_least_privilege(locked: LockedKafka, running: None) -> None:
    host, reader = locked.user("host"), locked.user("reader")
    with ControlTopic(locked.user("operator"), NAMES) as control:
        control.change("*", dry_run(True))
    (run_id,) = LOAD.run_ids
    receiver = KafkaReceiver(run_id, host, NAMES, connect_timeout_s=10)
    publisher = KafkaPublisher(run_id, host, NAMES, capacity=10_000)
    publisher.publish(TOPOLOGY, lambda: topology(run_id, LOAD.layers))
    by_record = {topic.record: topic for topic in TELEMETRY}
    for frame in frames(LOAD, 0):
        publisher.publish(by_record[type(frame)], lambda frame=frame: frame)  # type: ignore[misc]
    assert publisher.flush(20)
    assert (publisher.published, publisher.dropped) == (1 + 3 * LOAD.frames, 0)
    wanted = LOAD.windows(50)
    until(lambda: len(records(reader, DECISIONS.name)) >= wanted and records(reader, EXPERIENCE.name))
    assert len(records(reader, GRAPHS.name)) == len(records(reader, DECISIONS.name)) == wanted
    assert records(reader, REWARDS.name)
    received = []
    until(lambda: received.extend(receiver.receive()) or len(received) >= wanted + 1)
    assert all(decision.dry_run for decision in received if hasattr(decision, "dry_run") and hasattr(decision, "mask"))
    receiver.close()
    publisher.close(1)


def start(role: str, kafka: KafkaSettings) -> None:
    """Run a role's process until it ends."""
    if role == "learner":
        LearnerLoop(LearnerSettings(), kafka, NAMES).run()
    else:
        asyncio.run(Worker({role: STAGES[role]}, WorkerSettings(), kafka, NAMES).run())


@pytest.mark.kafka
@pytest.mark.parametrize("role", [*STAGES, "learner"])
def test_a_process_without_one_permission_does_not_start_and_names_it(
    locked: LockedKafka, permissions: Permissions, role: str
) -> None:
    wanted, kafka = grants(role, NAMES), locked.user(role)
    # One for each operation on each kind.
    for grant in {(each.operation, each.kind): each for each in wanted}.values():
        permissions.take(role, grant)
        until(lambda grant=grant: grant in missing(wanted, kafka))  # type: ignore[misc]
        began = time.monotonic()
        with pytest.raises(BrokerRefused, match=f"{role} lacks permissions .*{grant.operation} of {grant.kind} acl"):
            start(role, kafka)
        assert time.monotonic() - began < 15
        permissions.add(role, [grant])
        until(lambda: not missing(wanted, kafka))


@pytest.mark.kafka
def test_roles_have_no_other_permissions(locked: LockedKafka, permissions: Permissions) -> None:
    # The broker refuses what only another role may do: the lists are not too long.
    for role in ROLES:
        own = {(each.kind, each.name, each.operation) for each in grants(role, NAMES)}
        others = [each for other in ROLES for each in grants(other, NAMES)]
        beyond = [
            each
            for each in others
            if (each.kind, each.name, each.operation) not in own and each.operation in ("WRITE", "READ")
        ]
        assert set(missing(beyond, locked.user(role))) == set(beyond)


def test_grants_follow_from_the_catalogue() -> None:
    names = TopicNames(prefix="p.")
    for topic in CATALOGUE:
        for role in (*STAGES, "learner", "host"):
            mine = {each.operation for each in grants(role, names) if each.name == f"p.{topic.name}"}
            assert ("WRITE" in mine) == (topic.writer == role)
            if role in topic.readers:
                assert "READ" in mine
    for role in ROLES:
        found = [each for each in grants(role, names) if each.kind == "topic"]
        described = {each.name for each in found if each.operation in ("READ", "WRITE", "DESCRIBE")}
        assert {each.name for each in found if each.operation == "DESCRIBE_CONFIGS"} <= described
    for name, entry in STAGES.items():
        assert [each.name for each in grants(name, names) if each.kind == "group"] == [f"p.{entry.group}"]
    assert {each.operation for each in grants("reader", names) if each.kind == "topic"} == {"READ"}
    assert {each.operation for each in grants("reader", names) if each.kind == "group"} == {"DESCRIBE"}


def test_the_command_prints_a_table_commands_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tamiyo", "topics", "acls", "--role", "windows", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    assert "tamiyo.health.signals" in run()
    lines = run("--format", "commands", "--principal", "User:CN={role}").splitlines()
    assert "--add --allow-principal 'User:CN=windows' --operation READ --group 'tamiyo_windows'" in lines
    listed = json.loads(run("--format", "json"))
    assert len(listed) == len(lines) == len(grants("windows", TopicNames(prefix="")))
    assert set(listed[0]) == {"role", "principal", "kind", "name", "operation"}
