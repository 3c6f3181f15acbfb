"""What the laboratory computes in one process is what the pipeline computes on Kafka, field by field."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tamiyo.evaluation.common.live_runs import Live, workers
from tamiyo.evaluation.lab.baselines import Learned
from tamiyo.evaluation.lab.run import RunSpec
from tamiyo.models.checkpoint import load
from tamiyo.models.policy import BehaviourSettings, TamiyoPolicy
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import (
    CHECKPOINTS,
    DECISIONS,
    GRAPHS,
    KERNELS,
    OUTCOMES,
    SIGNALS,
    TELEMETRY,
    TOPOLOGY,
    WINDOWS,
    Topic,
)
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.messages import Message
from tamiyo.streams.replay.ordering import IntakeOrder
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.registry import STAGES
from tests.evaluation.lab.support import Published, finished
from tests.support.kafka_log import KafkaLog, LoggedMessage
from tests.support.released import make_policy, release

pytestmark = [pytest.mark.kafka, pytest.mark.flow, pytest.mark.timeout(300)]

VERSION = 7
SPECS = [RunSpec("digits", 3, 600), RunSpec("mnist1d", 1, 300)]
IDS = {SIGNALS: "signal_id", WINDOWS: "window_id", GRAPHS: "graph_id", DECISIONS: "decision_id", KERNELS: "kernel_id"}
MAY_DIFFER = {SIGNALS: {"signal_id"}, WINDOWS: {"signals_digest"}, KERNELS: {"compile_time_ms"}}

Records = dict[Topic, dict[str, dict[str, Any]]]
"""By topic and id, the fields of each record."""


@dataclass(frozen=True)
class Both:
    """The same telemetry, as the laboratory and as the pipeline processed it."""

    lab: Records
    kafka: Records


def trained_policy() -> TamiyoPolicy:
    """Return a policy that differs a little from the heuristic, and may act where its ensemble agrees."""
    policy = make_policy(0, behaviour=BehaviourSettings(max_spread=0.4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "prior" not in name:
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return policy


def publish(log: KafkaLog, kafka: KafkaSettings, names: TopicNames, published: Published) -> None:
    """Publish what a run's host has published, in its order; a window closes only after intake has read its events."""
    (topology,) = published.records[TOPOLOGY.name]
    key = topology.run_id.encode()
    log.publish(TOPOLOGY, [topology])
    partition = next(each.partition for each in log.read(TOPOLOGY.name) if each.key == key)
    ends = Counter((topic.name, each.partition) for topic in TELEMETRY for each in log.read(topic.name))
    group = names.full(STAGES["intake"].group)
    with closing(IntakeOrder(kafka, names, group, WindowSettings(), ends)) as order:
        for topic, data in published.messages:
            if topic in TELEMETRY:
                message = Message(topic.name, partition, 0, 0, key, data)
                order.before(message, lambda: None)
                log.publish_bytes(topic, [(key, data)])
                order.after(message)
            elif topic is OUTCOMES:
                log.publish_bytes(topic, [(key, data)])


def enough(expected: int) -> Callable[[list[LoggedMessage]], bool]:
    return lambda messages: len(messages) >= expected


@pytest.fixture(scope="module")
def both(real_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Train two runs in the laboratory under a learned policy, and have a worker process their telemetry."""
    folder = tmp_path_factory.mktemp("equivalence")
    kafka, names = KafkaSettings(bootstrap_servers=real_kafka), TopicNames(prefix="equivalence.")
    Topics(kafka, names).create()
    announced = release(folder / "checkpoints", VERSION, trained_policy())
    policy, _, _ = load((folder / "checkpoints" / announced.file).read_bytes(), announced.checksum)
    traffic = [finished(Learned(policy, VERSION), spec)[1] for spec in SPECS]
    lab: Records = {
        topic: {getattr(each, name): each.model_dump() for run in traffic for each in run.records[topic.name]}
        for topic, name in IDS.items()
    }
    live = Live(kafka, names, f"file://{folder}")
    stages = ("intake", "windows", "graphs", "decisions", "kernels")
    with closing(KafkaLog(kafka, names)) as log:
        log.publish_bytes(CHECKPOINTS, [(announced.name.encode(), encode(announced))])
        with workers(live, folder, f"file://{folder}", stages):
            for run in traffic:
                publish(log, kafka, names, run)
            for topic in (DECISIONS, KERNELS):
                log.wait_for(topic.name, enough(len(lab[topic])), timeout_s=120)
        found: Records = {}
        for topic, name in IDS.items():
            records = [decode(each.value, topic.record) for each in log.read(topic.name)]
            found[topic] = {getattr(each, name): each.model_dump() for each in records}
            assert len(found[topic]) == len(records)
    return Both(lab, found)


def test_the_runs_adapt(both: Both) -> None:
    types = Counter(each["type"] for each in both.lab[DECISIONS].values())
    assert types[DecisionType.LOAD_KERNEL] >= 2
    assert types[DecisionType.NO_OP] >= 2
    assert {each["method"] for each in both.lab[DECISIONS].values()} == {"policy", "baseline"}
    assert {each["policy_version"] for each in both.lab[DECISIONS].values()} == {VERSION}


@pytest.mark.parametrize("topic", [WINDOWS, GRAPHS, DECISIONS, KERNELS], ids=lambda topic: topic.name)
def test_every_field_is_that_of_the_pipeline(topic: Topic, both: Both) -> None:
    lab, kafka = both.lab[topic], both.kafka[topic]
    assert set(lab) == set(kafka)
    for name, record in lab.items():
        for field, value in record.items():
            if field not in MAY_DIFFER.get(topic, ()):
                assert kafka[name][field] == value, (topic.name, name, field)


def test_signals_are_those_of_the_pipeline_up_to_their_offsets(both: Both) -> None:
    def content(records: Records) -> list[str]:
        return sorted(repr({k: v for k, v in each.items() if k != "signal_id"}) for each in records[SIGNALS].values())

    assert content(both.lab) == content(both.kafka)
