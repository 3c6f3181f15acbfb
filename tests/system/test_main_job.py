"""The main job end to end: processes of the real command line, a real training run, a broker.

The demo runs once on the embedded broker and once on a real Kafka; the tests check the records on the topics.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from rich.console import Console

from tamiyo.schemas import topics
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.streams.admin.brokers import EmbeddedBroker
from tamiyo.streams.admin.topic_tail import follow
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.demo.demo import QUICK_STEPS, Demo
from tamiyo.streams.demo.report import Report
from tamiyo.streams.settings import RewardSettings, WindowSettings

pytestmark = [pytest.mark.flow, pytest.mark.timeout(240)]

# One message on every telemetry topic that is no Avro: it must become a dead letter and stop nothing.
GARBAGE = b"\xc3\x01not a record"
BAD = [topic.name for topic in topics.TELEMETRY]


@dataclass
class Job:
    """A finished demo and its broker."""

    report: Report
    kafka: KafkaSettings
    shown: str

    def records(self, topic: topics.Topic | str) -> list[dict[str, Any]]:
        """Return the records of a topic."""
        name = topic if isinstance(topic, str) else topic.name
        return [line.value for line in follow(name, self.kafka, TopicNames(prefix=""), beginning=True, forever=False)]


def run_demo(bootstrap: str) -> Job:
    """Run the quick demo with an invalid message on each telemetry topic."""
    kafka, names = KafkaSettings(bootstrap_servers=bootstrap), TopicNames(prefix="")
    Topics(kafka, names).create()
    producer = Producer(kafka.librdkafka(**PRODUCER))
    for name in BAD:
        producer.produce(name, GARBAGE, "a stranger")
    assert producer.flush(20) == 0
    page = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAMIYO_LEARNER_FRESH_BATCH", "4")  # so that twenty decisions suffice for a new policy
        patch.setenv("TAMIYO_LEARNER_GATES", "[]")  # which may reject every policy learned from so few
        report = Demo(task="mnist1d", seed=0, steps=QUICK_STEPS).run(Console(file=page, width=160), kafka)
    return Job(report, kafka, page.getvalue())


@pytest.fixture(scope="module", params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def job(request: pytest.FixtureRequest) -> Iterator[Job]:
    if request.param == "real":
        yield run_demo(request.getfixturevalue("real_kafka"))
        return
    with EmbeddedBroker() as broker:
        yield run_demo(broker.bootstrap_servers)


def test_telemetry_in_decisions_out(job: Job) -> None:
    counts = job.report.counts
    assert counts["telemetry_records"] >= 3 * QUICK_STEPS // 50  # three topics, and a frame in every window
    assert counts["signals"] == counts["telemetry_records"]
    assert counts["graphs"] == counts["windows"] >= QUICK_STEPS // 50
    assert counts["decisions"] == counts["graphs"]
    # On a busy machine a telemetry topic may be read so long after the others that its window is closed.
    assert counts["late"] <= counts["signals"] // 100
    assert {d["graph_id"] for d in job.records(topics.DECISIONS)} == {g["graph_id"] for g in job.records(topics.GRAPHS)}


def test_decisions_are_executed_and_have_outcomes(job: Job) -> None:
    counts = job.report.counts
    assert counts["outcomes"] == counts["adaptations_asked_for"]
    assert counts["executed"] >= 1
    assert job.report.host is not None
    assert job.report.static is not None
    assert job.report.host["parameters"] > job.report.static["parameters"]
    assert job.report.host["steps"] == job.report.static["steps"] == QUICK_STEPS
    kernels = {record["kernel_id"]: record for record in job.records(topics.KERNELS)}
    for outcome in job.records(topics.OUTCOMES):
        if outcome["type"] == "load_kernel" and outcome["status"] == "executed":
            assert kernels[outcome["kernel_id"]]["status"] == "compiled"
            assert abs(outcome["after"]["loss"] - outcome["before"]["loss"]) < 1e-6


def test_rewards_are_attributed_over_spans(job: Job) -> None:
    loads = [r for r in job.records(topics.REWARDS) if r["action"]["type"] == "load_kernel" and r["complete"]]
    assert loads
    # A load that was refused or executed at the run's end is in no span; one executed a window earlier is in the first.
    last = QUICK_STEPS - RewardSettings().span_steps[0] - WindowSettings().width
    executed = {o["decision_id"]: o["step"] for o in job.records(topics.OUTCOMES) if o["status"] == "executed"}
    early = [reward for reward in loads if executed.get(reward["decision_id"], QUICK_STEPS) <= last]
    assert early
    assert all(any(span["seen"] for span in reward["spans"]) for reward in early)
    assert all(reward["explanation"] for reward in loads)
    waits = [r for r in job.records(topics.REWARDS) if r["action"]["type"] == "no_op"]
    assert waits
    assert {reward["total"] for reward in waits} == {0.0}


def test_experiences_are_learned_and_new_policies_decide(job: Job) -> None:
    assert job.report.counts["experiences"] >= job.report.counts["decisions"]
    assert job.report.counts["policy_updates"] >= 1
    newest = max(record["version"] for record in job.records(topics.CHECKPOINTS))
    assert newest >= 1
    served = {decision["policy_version"] for decision in job.records(topics.DECISIONS)}
    assert 0 in served
    assert max(served) >= 1
    assert served <= set(range(newest + 1))


def test_each_invalid_message_is_a_dead_letter_with_its_reason(job: Job) -> None:
    assert job.report.counts["dead_letters"] == len(BAD)
    for name in BAD:
        lines = list(follow(f"{name}.dlq", job.kafka, TopicNames(prefix=""), beginning=True, forever=False))
        assert [bytes.fromhex(line.value["bytes"]) for line in lines] == [GARBAGE]
        assert "expected a" in lines[0].headers["tamiyo-reason"]


def test_a_decision_has_one_outcome(job: Job) -> None:
    ids = [outcome["decision_id"] for outcome in job.records(topics.OUTCOMES)]
    assert len(ids) == len(set(ids))


def test_the_report_is_complete(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    job.report.write(path)
    report = json.loads(path.read_text())
    assert report == json.loads(json.dumps(asdict(job.report)))
    assert {"task", "seed", "wall_seconds", "host", "static", "counts", "latency_ms", "decisions"} <= set(report)
    for side in ("host", "static"):
        assert {"steps", "test_accuracy", "validation_loss", "parameters"} <= set(report[side])
    assert {"overhead_ratio", "dropped_records"} <= set(report["host"])
    assert report["host"]["dropped_records"] == 0
    for name in ("intake", "decision", "telemetry_to_decision"):
        assert 0 < report["latency_ms"][name]["p50"] <= report["latency_ms"][name]["p99"]
    wanted = {"id", "step", "layer", "type", "blueprint", "confidence", "uncertainty", "executed", "reward"}
    assert all(wanted | {"explanation"} <= set(decision) for decision in report["decisions"])


def test_progress_was_shown(job: Job) -> None:
    assert "decision: load_kernel" in job.shown
    assert "policy version 0" in job.shown
