"""The soak's runs, its schedule of faults and its report, without a broker."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tamiyo.evaluation.common.account import Ledger
from tamiyo.evaluation.common.samples import SampleFile, read_samples
from tamiyo.evaluation.soak import __main__ as program
from tamiyo.evaluation.soak.faults import BROKER, schedule
from tamiyo.evaluation.soak.pieces import earlier
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


def piece(
    path: Path, minutes: int, *, seed: int = 7, end: str | None = "end", commit: str | None = None, **account: Any
) -> None:
    """Append a piece to a file, as another run of the program does."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    write(part, minutes, leak=0.0)
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "sample":
            line["account"] = {**line["account"], "graphs": 5, **account}
        if line["kind"] == "begin":
            line["options"]["seed"] = seed
            if commit is not None:
                line["commit"] = commit
    if end is not None:
        lines.append({"kind": "end", "t": 60.0 * minutes, "complete": end == "end"})
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_the_pieces_of_a_soak_follow_each_other_and_are_judged_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    piece(path, 60, end="stopped", commit="abc")
    piece(path, 40)
    report = report_of(path)
    assert [each["minutes"] for each in report["pieces"]] == [60, 40]
    assert [each["commit"] for each in report["pieces"]] == ["abc", None]  # earlier programs named none
    assert report["minutes"] == 100
    assert report["complete"]
    assert report["load"]["records_sent"] == 2 * 20 * (6 * 60) - 2 * 20 * 60
    assert report["load"]["records_per_second"] == 2
    assert report["faults"]["minutes"] == [[10, "kill", "worker-1"], [70, "kill", "worker-1"]]
    assert report["account"]["graphs"] == 10
    assert report["account"]["clean"]
    assert report["restarts"] == {"worker-1": 2}
    assert report["ends_by_themselves"] == [["worker-2", 70]] * 2
    assert {name for name in report["trends"] if name.endswith("worker-2 rss_mb")} == {
        "piece 1: worker-2 rss_mb",
        "piece 2: worker-2 rss_mb",
    }
    assert report["trends"]["piece 2: intake lag"]["minutes"] == 20
    assert report["verdict"]["flat"]
    minutes = report["series"]["intake lag"]["minutes"]
    assert minutes == sorted(minutes)
    assert minutes[-1] > 99
    # worker-2 has the same process id in both pieces: no processor time is counted over the gap.
    assert min(report["series"]["worker-2 cores"]["values"]) == 0.5


def test_what_grows_in_one_piece_is_in_the_verdict(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    piece(path, 60)
    write(tmp_path / "leak", 60, leak=30.0)
    with path.open("a") as file:
        file.write((tmp_path / "leak").read_text())
    assert report_of(path)["verdict"]["growing"] == ["piece 2: worker-2 rss_mb"]


@pytest.mark.parametrize(
    ("ends", "account", "clean"),
    [
        (("end", "end"), {}, True),
        (("end", "end"), {"windows_missing": 1, "clean": False}, False),
        # Of a piece that was killed, windows were on their way.
        (("end", None), {"windows_missing": 1, "clean": False}, True),
        (("end", None), {"decisions_conflicting": 1, "clean": False}, False),
        ((None, None), {}, False),
    ],
)
def test_an_account_over_pieces(
    tmp_path: Path, ends: tuple[str | None, str | None], account: dict[str, Any], clean: bool
) -> None:
    path = tmp_path / "samples"
    piece(path, 30, end=ends[0])
    piece(path, 30, end=ends[1], **account)
    assert report_of(path)["account"]["clean"] == clean


def test_a_file_of_samples_is_continued_after_a_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    piece(path, 30)
    path.write_text(path.read_text()[:-10])
    file = SampleFile(path)
    file.write("begin", minutes=1)
    file.close()
    lines = read_samples(path)
    assert lines[-1]["kind"] == "begin"
    assert lines[-2]["kind"] == "sample"
    assert sum(each["kind"] == "begin" for each in lines) == 2


def test_a_soak_goes_on_with_its_options_only(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    assert earlier(path, {"seed": 7, "runs": 6}) == ()
    path.touch()
    assert earlier(path, {"seed": 7, "runs": 6}) == ()
    piece(path, 30)
    piece(path, 40)
    assert [each.seconds for each in earlier(path, {"seed": 7, "runs": 6})] == [1800, 2400]
    with pytest.raises(ConfigurationError, match=r"of a soak with --runs 6, but --runs is 5"):
        earlier(path, {"seed": 7, "runs": 5})
    with pytest.raises(ConfigurationError, match=r"cannot be added to .*samples.gz: unpack it"):
        earlier(tmp_path / "samples.gz", {"seed": 7, "runs": 6})
    path.write_text('{"kind": "sample"}\n')
    with pytest.raises(ConfigurationError, match="has no samples of a soak"):
        earlier(path, {"seed": 7, "runs": 6})


def test_a_soak_whose_pieces_have_its_minutes_only_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[float, int]] = []

    def run(home: Path, samples: Path, minutes: float, *rest: Any, number: int) -> bool:
        ran.append((minutes, number))
        piece(samples, round(minutes))
        return True

    monkeypatch.setattr(program, "begin", lambda report: (Console(quiet=True), tmp_path))
    monkeypatch.setattr(program, "_piece", run)
    path = tmp_path / "samples"
    fields: dict[str, Any] = {"runs": 6, "layers": 10, "pace": 1.0, "fault_every": 150.0}
    piece(path, 30)
    program.main(minutes=50, seed=7, samples=path, report=tmp_path / "report", **fields)
    program.main(minutes=50, seed=7, samples=path, report=None, **fields)
    assert ran == [(20, 1)]
    assert json.loads((tmp_path / "report").read_text())["minutes"] == 50


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
