"""What operators announce about the policy, on one partition or two."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.topics import CHECKPOINTS
from tamiyo.streams.admin.policies import PolicyVersions
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.learner.operator_orders import OperatorOrders
from tamiyo.streams.learner.releases import CheckpointReleases

NAME = "tamiyo"
ORDERS = policy_orders_key(NAME)


def checkpoint(**changes: Any) -> PolicyCheckpoint:
    about = {
        "name": NAME,
        "version": 1,
        "time_ms": 1,
        "status": CheckpointStatus.RELEASED,
        "file": "f",
        "checksum": "c",
    }
    rest = {"size_bytes": 1, "feature_version": 1, "blueprints": [], "offsets": {}}
    return PolicyCheckpoint(**{**about, **rest, **changes})  # type: ignore[arg-type]


class Topic:
    """The topic of checkpoints, written partition by partition."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        self._name = names.full(CHECKPOINTS.name)
        self._producer = AwaitedProducer(kafka)

    def send(self, partition: int, time_ms: int, key: str, record: PolicyCheckpoint | None) -> None:
        value = encode(record) if record is not None else None
        self._producer.produce(self._name, value, key, partition=partition, timestamp_ms=time_ms)
        self._producer.flush()


def poll(orders: OperatorOrders, until: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not until():
        assert time.monotonic() < deadline, "it never came true"
        orders.poll()
        time.sleep(0.01)


@pytest.fixture
def topic(kafka: KafkaSettings, names: TopicNames) -> Topic:
    Topics(kafka, names, (CHECKPOINTS,)).touch()
    return Topic(kafka, names)


@pytest.fixture
def orders(kafka: KafkaSettings, names: TopicNames) -> Iterator[OperatorOrders]:
    found = OperatorOrders(NAME, kafka, names)
    yield found
    found.close()


def test_orders_of_the_old_partition_do_not_come_back(topic: Topic, orders: OperatorOrders) -> None:
    topic.send(3, 2_000, ORDERS, checkpoint(frozen=False, version=2))
    topic.send(0, 1_000, ORDERS, checkpoint(frozen=True))
    orders.start()
    assert not orders.frozen
    topic.send(3, 3_000, ORDERS, checkpoint(frozen=True))
    poll(orders, lambda: orders.frozen)
    topic.send(0, 1_000, ORDERS, None)  # the old copy is removed
    topic.send(0, 4_000, NAME, checkpoint(status=CheckpointStatus.ROLLED_BACK))  # shows that it was read
    poll(orders, lambda: orders.rollback)
    assert orders.frozen
    topic.send(3, 5_000, ORDERS, None)
    poll(orders, lambda: not orders.frozen)


def test_a_rollback_that_a_release_has_overtaken_is_not_obeyed(topic: Topic, orders: OperatorOrders) -> None:
    orders.start()
    topic.send(3, 2_000, NAME, checkpoint(version=5))
    topic.send(3, 2_000, ORDERS, checkpoint(frozen=True))
    poll(orders, lambda: orders.frozen)
    topic.send(0, 1_000, NAME, checkpoint(version=4, status=CheckpointStatus.ROLLED_BACK))
    topic.send(0, 3_000, ORDERS, checkpoint(frozen=False))
    poll(orders, lambda: not orders.frozen)
    assert orders.rollback is None
    topic.send(3, 4_000, NAME, checkpoint(version=5, status=CheckpointStatus.ROLLED_BACK))
    poll(orders, lambda: orders.rollback)


def test_releases_and_the_command_line_take_the_newest_of_all_partitions(
    topic: Topic, kafka: KafkaSettings, names: TopicNames, tmp_path: Path
) -> None:
    topic.send(3, 2_000, NAME, checkpoint(version=5))
    topic.send(0, 1_000, NAME, checkpoint(version=4, status=CheckpointStatus.ROLLED_BACK))
    topic.send(3, 2_000, ORDERS, checkpoint(pinned=False))
    topic.send(0, 1_000, ORDERS, checkpoint(pinned=True))
    url = f"file://{tmp_path}"
    announced = CheckpointReleases(NAME, CheckpointStore(url), kafka, names).announced()
    assert announced is not None
    assert announced.version == 5
    policies = PolicyVersions(NAME, url, kafka, names)
    assert policies.newest == announced
    assert policies.pinned is None
    topic.send(3, 3_000, ORDERS, None)
    assert PolicyVersions(NAME, url, kafka, names).orders is None


@pytest.mark.kafka
def test_orders_on_a_partition_that_was_added_are_read(real_kafka: str, names: TopicNames) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    topics = Topics(kafka, names, (CHECKPOINTS,))
    topics.create(partitions=1)
    orders = OperatorOrders(NAME, kafka, names)
    try:
        orders.start()
        topics.grow(3)
        Topic(kafka, names).send(2, 2_000, ORDERS, checkpoint(frozen=True))
        orders.refresh()
        poll(orders, lambda: orders.frozen)
        orders.refresh()  # nothing is added twice
    finally:
        orders.close()
