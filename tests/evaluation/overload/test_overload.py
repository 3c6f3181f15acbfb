"""Overload: the flood of telemetry, the check of shedding, and a small overload on a broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.fleet import Fleet
from tamiyo.evaluation.overload.__main__ import Overload, cores, memory, problems
from tamiyo.evaluation.overload.load import Flood, Template
from tamiyo.evaluation.overload.shed import shed, shed_of
from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.codec import decode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import KernelPerformance, ModelTopology
from tamiyo.schemas.topics import BY_NAME, KERNEL_PERFORMANCE, LAYER_HEALTH, TOPOLOGY
from tamiyo.streams.admin.brokers import EmbeddedBroker, LocalKafka, kafka_home
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.settings import IntakeSettings
from tamiyo.streams.stages.intake.stage import IntakeStage
from tests.support.telemetry import incoming, outputs

TEMPLATE = Template.of(layers=3, frames=12)


class Published:
    """A flood, and everything that it publishes."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, str]] = []
        self.ledger = Ledger(50)
        self.flood = Flood(TEMPLATE, 2, lambda *message: self.messages.append(message), self.ledger)


def test_a_flood_is_telemetry_of_runs_that_begin_and_end() -> None:
    published = Published()
    sent = published.flood.publish(100, 5.0)
    published.flood.finish(6.0)

    assert published.flood.records == len(published.messages) - published.flood.numbers >= sent >= 100
    decoded = {topic: [] for topic in BY_NAME}  # type: ignore[var-annotated]
    for topic, value, key in published.messages:
        record = decode(value, BY_NAME[topic].record)
        assert record.run_id == key  # type: ignore[attr-defined]
        decoded[topic].append(record)
    begun = [record.run_id for record in decoded[TOPOLOGY.name] if isinstance(record, ModelTopology)]
    assert len(set(begun)) == len(begun) == published.flood.numbers > 2
    finals = [
        each.run_id for each in decoded[KERNEL_PERFORMANCE.name] if isinstance(each, KernelPerformance) and each.final
    ]
    assert sorted(finals) == sorted(begun)
    account = published.ledger.verdict()
    assert account.windows_expected > 0
    assert account.windows_open == 0, "every run has ended, so every window is complete"


def overloaded() -> list[HealthSignals]:
    """Return intake's signals of many more frames than its buffer takes, in which one layer deviates."""
    intake = IntakeStage(0, IntakeSettings(batch_signals=10, buffer_signals=40, deviation_minimum=2), {})
    frames = []
    for step in range(40):
        latency = [1.0 + 0.01 * ((7 * step + layer) % 5) for layer in range(8)]
        latency[3] *= 1 if step < 30 else 10
        frames.append(
            KernelPerformance(
                run_id="run", step=step, time_ms=step, layer_id=list("abcdefgh"), execution_latency_ms=latency
            )
        )
    return [
        one.record
        for one in outputs(intake.feed([incoming(each, KERNEL_PERFORMANCE.name, n) for n, each in enumerate(frames)]))
    ]


def test_intake_sheds_by_priority_and_the_rest_estimates_the_whole() -> None:
    found = shed_of(overloaded())
    assert found.out_of_order == 0
    assert found.offered == 40 * 8
    assert 200 < found.layer_signals < 310
    assert found.estimated / found.known == pytest.approx(1, abs=0.5)
    assert 0.6 < found.to_dict()["share"] < 1


def test_shedding_by_another_order_is_noticed() -> None:
    wrong = HealthSignals(
        run_id="run", signal_id="s", source=LAYER_HEALTH.name, step=0, time_ms=0, layer_id=["a", "b", "c", "d"],
        metrics={}, priority=[0.0, 1.0, 2.0, 3.0], survival=[0.9, 0.5, 0.6, 0.2], shed=2, model_metrics={},
    )  # fmt: skip
    found = shed_of([wrong])
    assert found.out_of_order == 2
    assert found.to_dict()["mean_survival_of_the_quarter_with_the"] == {"lowest": 0.9, "highest": 0.2}


def test_memory_is_reported_by_phase() -> None:
    samples = [
        {"phase": phase, "rss_mb": {"worker": mb}}
        for phase, mb in [
            ("search", 500.0),
            ("search", 510.0),
            ("overload", 700.0),
            ("overload", 690.0),
            ("draining", 720.0),
            ("draining", 640.0),
        ]
    ]
    assert memory(samples) == {
        "worker": {"before": 510.0, "maximum_during": 700.0, "maximum_draining": 720.0, "after": 640.0}
    }


def test_cores_are_counted_from_the_beginning_of_the_overload() -> None:
    samples = [
        {"phase": "search", "t": 0.0, "cpu_s": {"worker": 1.0}},
        {"phase": "overload", "t": 10.0, "cpu_s": {"worker": 5.0}},
        {"phase": "draining", "t": 30.0, "cpu_s": {"worker": 10.0}},
    ]
    assert cores(samples) == {"worker": 0.25}


def test_every_requirement_that_is_not_met_is_named() -> None:
    result = {
        "account": {"clean": True},
        "undelivered": 0,
        "restarts": {},
        "shed": {"layer_signals": 5, "out_of_order": 0},
        "overload": {"factor": 9.5, "factor_asked": 10.0},
        "memory_mb": {"worker": {"before": 500.0, "maximum_during": 900.0}},
        "memory_limit_mb": 1_000,
    }
    assert problems(result) == []
    failed = {
        "account": {"clean": False},
        "undelivered": 1,
        "restarts": {"worker": 1},
        "shed": {"layer_signals": 0, "out_of_order": 1},
        "overload": {"factor": 5.0, "factor_asked": 10.0},
        "memory_mb": {"worker": {"before": 500.0, "maximum_during": 2_000.0}},
    }
    assert problems(result | failed) == [
        "the account is not clean",
        "records were not delivered",
        "processes ended",
        "nothing was shed",
        "a signal of higher priority had a lower chance of survival",
        "the requested rate was not reached",
        "worker used more memory than a container's limit",
    ]


@contextmanager
def broker() -> Iterator[str]:
    """Run a real broker if KAFKA_HOME names one, else the embedded broker."""
    home = kafka_home()
    with LocalKafka(home) if home is not None else EmbeddedBroker() as running:
        yield running.bootstrap_servers


@pytest.mark.flow
@pytest.mark.timeout(300)  # two processes import torch, on a machine that may be busy
def test_a_burst_beyond_the_buffer_is_shed_counted_and_decided_on(tmp_path: Path) -> None:
    names = TopicNames(prefix="")
    with broker() as servers:
        kafka = KafkaSettings(bootstrap_servers=servers)
        Topics(kafka, names).create(partitions=4)
        environment = {
            "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": servers,
            "TAMIYO_STORE_URL": f"file://{tmp_path}/store",
            # Small limits instead of many layers: batches above 50 rows may be shed, and 250 rows may wait.
            "TAMIYO_INTAKE_BATCH_SIGNALS": "50",
            "TAMIYO_INTAKE_BUFFER_SIGNALS": "250",
            "OMP_NUM_THREADS": "1",
        }
        with Fleet(tmp_path, environment) as fleet:
            fleet.add_worker("worker")
            fleet.add_learner()
            fleet.wait_ready()
            overload = Overload(kafka, names, fleet, layers=8, frames=20, runs=4)
            try:
                overload.burst(600)
                account = overload.account()
            finally:
                overload.close()
            found = shed(kafka, names)
            assert not fleet.ends
    assert account["clean"], account
    assert account["decisions"] == account["graphs"] == account["windows_expected"] > 30
    assert found["layer_signals"] > 0
    assert found["out_of_order"] == 0
    assert overload.undelivered == 0
