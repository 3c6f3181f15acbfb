"""The soak's runs, its schedule of faults and its report, without a broker."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.samples import SampleFile, read_samples
from tamiyo.evaluation.soak.faults import BROKER, schedule
from tamiyo.evaluation.soak.plot import draw
from tamiyo.evaluation.soak.report import report_of
from tamiyo.evaluation.soak.runs import GAIN, Population
from tamiyo.schemas.adaptation import Action, AdaptationDecision, CompiledKernel
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import CacheHitRates, ErrorRecoveryEvent, LayerHealth, ModelPerformance, ModelTopology
from tamiyo.schemas.topics import OUTCOMES, Topic
from tamiyo.streams.admin.brokers import kafka_home

# Runs


class Published:
    """A population, and everything that it publishes."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.ledger = Ledger(50)
        self.population = Population(
            3, layers=4, pace_s=1.0, frames=(12, 20), seed=3, publish=self.publish, journal=self.ledger
        )  # fmt: skip

    def publish(self, topic: Topic, record: Record, key: str) -> None:
        assert type(record) is topic.record
        self.records.append(record)

    def of(self, kind: type[Record]) -> list[Any]:
        return [record for record in self.records if type(record) is kind]


def test_runs_begin_and_end_and_are_replaced() -> None:
    published = Published()
    for second in range(60):
        published.population.advance(1000.0 + second)
    began = [record.run_id for record in published.of(ModelTopology)]
    finals = {record.run_id for record in published.of(ModelPerformance) if record.final}
    assert len(published.population.runs) == 3
    assert len(set(began)) == len(began) == published.population.numbers > 6
    silent = set(began) - finals - published.population.runs.keys()
    assert finals
    assert silent, "one run in six is abandoned, and this seed has one"
    assert {type(record) for record in published.records} >= {CacheHitRates, ErrorRecoveryEvent, LayerHealth}

    published.population.finish(1060.0)

    assert {record.run_id for record in published.of(ModelPerformance) if record.final} == set(began) - silent


def test_the_same_seed_gives_the_same_runs() -> None:
    first, second = Published(), Published()
    for published in (first, second):
        for now in range(20):
            published.population.advance(1000.0 + now)
    assert first.records == second.records


def decision(run_id: str) -> AdaptationDecision:
    action = Action(type="load_kernel", layer_id="layers.1", blueprint="low_rank")
    return AdaptationDecision(
        run_id=run_id, decision_id="decision", graph_id="graph", step=0, time_ms=0, type="load_kernel",
        layer_id="layers.1", blueprint="low_rank", kernel_id="kernel", proposed=action, confidence=1, uncertainty=0,
        urgency=0, predicted_reward=0, value=0, method="policy", policy_version=0, seed=0, temperature=1, layers=[],
        kinds=[], action_index=1, mask=b"", probabilities=Tensor.of([1.0]), log_probability=0, entropy=0,
    )  # fmt: skip


def test_a_host_loads_a_kernel_when_it_arrives_and_its_telemetry_shows_it() -> None:
    published = Published()
    published.population.advance(1000.0)
    run_id = next(iter(published.population.runs))
    wanted = decision(run_id)
    kernel = CompiledKernel(
        run_id=run_id, kernel_id="kernel", decision_id="decision", layer_id="layers.1", blueprint="low_rank",
        status="compiled",
    )  # fmt: skip
    published.population.receive(wanted, 1001.0)
    assert not published.of(OUTCOMES.record)
    for record in (kernel, wanted, kernel):
        published.population.receive(record, 1001.0)
    (outcome,) = published.of(OUTCOMES.record)
    assert (outcome.status, outcome.decision_id) == ("executed", "decision")
    assert outcome.after["parameters"] > outcome.before["parameters"]

    published.population.advance(1002.0)

    health = [each for each in published.of(LayerHealth) if each.run_id == run_id][-1]
    assert (health.active_seeds, health.dormant_seeds) == ([0, 1, 0, 0], [2, 1, 2, 2])
    assert health.contribution[1] == GAIN
    model = [each for each in published.of(ModelPerformance) if each.run_id == run_id][-1]
    assert model.steps_since_adaptation is not None


# Faults


def test_faults_come_from_the_seed_and_spare_witnesses_in_the_second_half() -> None:
    faults = schedule(7200, 0, ("worker-1", "worker-2", "learner"), ("worker-2", "learner"))
    assert faults == schedule(7200, 0, ("worker-1", "worker-2", "learner"), ("worker-2", "learner"))
    assert faults != schedule(7200, 1, ("worker-1", "worker-2", "learner"), ("worker-2", "learner"))
    assert {fault.victim for fault in faults if fault.at_s >= 3600} == {"worker-1", BROKER}
    assert {fault.victim for fault in faults if fault.at_s < 3600} == {"worker-1", "worker-2", "learner", BROKER}
    assert {fault.kind for fault in faults} == {"kill", "freeze", "restart"}
    assert [fault.at_s for fault in faults if fault.victim == BROKER] == [600, 1800, 3000, 4200, 5400, 6600]
    assert all(120 <= fault.at_s <= 7080 for fault in faults)
    assert all(fault.duration_s > 6 for fault in faults if fault.kind == "freeze"), (
        "a freeze shorter than the session timeout makes no zombie"
    )


# Samples and reports


def write(path: Path, minutes: int, leak: float = 0.0) -> None:
    file = SampleFile(path)
    file.write(
        "begin", command="soak", minutes=minutes, settings={}, machine={}, versions={}, witnesses=["worker-2"],
        options={"seed": 7, "runs": 6},
    )  # fmt: skip
    file.close()
    lines = []
    account = Ledger(50).verdict().to_dict()
    for number in range(6 * minutes + 1):
        t = 10.0 * number
        worker = {"pid": 1, "rss_mb": 400 + leak * t / 3600, "fds": 40, "threads": 11, "cpu_s": 0.5 * t}
        restarted = {**worker, "pid": number // 30, "cpu_s": 5.0 * (number % 30)}
        if t == 600:
            lines.append({"kind": "fault", "t": t, "what": "kill", "victim": "worker-1", "duration_s": 3.0})
        late = 5_000.0 if t == 610 else 40.0
        lines.append(
            {
                "kind": "sample", "t": t,
                "processes": {"worker-1": restarted, "worker-2": worker, "broker": worker},
                "lag": None if t == 610 else {"intake": 5}, "latencies_ms": [late], "sent": 20 * number, "runs": number,
                "read": {}, "policy_version": 3, "undelivered": 0,
                "load_average": 1.0 + (t == 600), "restarts": {"worker-1": 1},
                "ends": [["worker-1", -9, True], ["worker-2", 70, False]], "account": account,
            }
        )  # fmt: skip
    with path.open("a") as more:
        more.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_report_of_a_soak_interrupted_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    write(path, 120)
    whole = report_of(path)
    path.write_text(path.read_text()[:-40])
    assert len(read_samples(path)) == 6 * 120 + 2

    report = report_of(path)

    assert not report["complete"]
    assert report["verdict"] == {"flat": True, "growing": [], "not_judged_or_unclear": []}
    assert report["trends"]["worker-2 rss_mb"]["verdict"] == "flat"
    for name in ("broker rss_mb", "worker-1 rss_mb"):  # started again every five minutes
        assert name not in report["trends"]
        assert name in report["series"]
    assert report["load"]["cores"] == {"worker-1": 0.5, "worker-2": 0.5, "broker": 0.5}
    assert report["load"]["records_per_second"] == 2
    assert report["load"]["load_average"] == {"mean": 1.0, "maximum": 2.0}
    assert report["faults"]["by_kind"] == {"kill": 1}
    assert report["ends_by_themselves"] == [["worker-2", 70]]
    assert report["latency_ms"]["all"]["maximum"] == 5_000
    assert report["latency_ms"]["no_fault_within_a_minute"]["maximum"] == 40
    assert report["lag"]["intake"]["maximum"] == 5
    assert all(len(series["values"]) <= 400 for series in report["series"].values())
    assert whole["minutes"] == 120


def test_a_leak_is_in_the_verdict_and_the_figure_can_be_drawn(tmp_path: Path) -> None:
    write(tmp_path / "samples", 60, leak=30.0)
    report = report_of(tmp_path / "samples")
    assert report["verdict"] == {"flat": False, "growing": ["worker-2 rss_mb"], "not_judged_or_unclear": []}
    assert report["trends"]["worker-2 rss_mb"]["verdict"] == "grows 30 MB per hour"
    assert report["judged_since_minute"] == 30
    zipped = tmp_path / "samples.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "samples").read_bytes()))
    later = report_of(zipped, 40)
    assert later["judged_since_minute"] == 40
    assert later["trends"]["intake lag"]["minutes"] == pytest.approx(20, abs=0.2)
    assert later["verdict"]["growing"] == ["worker-2 rss_mb"]
    draw(report, tmp_path / "one.svg")
    draw(report, tmp_path / "two.svg")
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples").write_text("")
    with pytest.raises(ConfigurationError, match="has no samples of a soak"):
        report_of(tmp_path / "samples")
    (tmp_path / "samples.gz").write_bytes(b"none")
    with pytest.raises(ConfigurationError, match="cannot be unpacked"):
        report_of(tmp_path / "samples.gz")


@pytest.mark.parametrize("minute", [61.0, float("nan")])
def test_trends_cannot_begin_after_the_end(tmp_path: Path, minute: float) -> None:
    write(tmp_path / "samples", 60)
    with pytest.raises(ConfigurationError, match="its load ended at 60"):
        report_of(tmp_path / "samples", minute)


@pytest.mark.skipif(kafka_home() is None, reason="needs a real Kafka: KAFKA_HOME names none")
@pytest.mark.timeout(300)  # three processes import torch, on a machine that may be busy
def test_a_stopped_soak_drains_and_reports(tmp_path: Path) -> None:
    samples, report = tmp_path / "samples", tmp_path / "report"
    options = ["--minutes", "30", "--pace", "0.2", "--samples", str(samples), "--report", str(report)]
    with subprocess.Popen(
        [sys.executable, "-m", "tamiyo.evaluation.soak", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as soak:
        while not samples.exists() or sum(each["kind"] == "sample" for each in read_samples(samples)) < 3:
            assert soak.poll() is None, soak.communicate()
            time.sleep(0.5)
        soak.terminate()
        output, _ = soak.communicate(timeout=180)
    found = json.loads(report.read_text())
    assert soak.returncode == 1, output
    assert not found["complete"]
    assert found["account"]["clean"], found["account"]
    assert found["account"]["decisions"] == found["account"]["graphs"] > 10
    assert set(found["load"]["cores"]) == {"worker-1", "worker-2", "learner", "broker", "soak"}
    assert not found["ends_by_themselves"]
