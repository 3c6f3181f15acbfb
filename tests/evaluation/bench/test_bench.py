"""The benchmark: equal content for the stages and the peer, arithmetic, and reports."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tamiyo.evaluation.bench import __main__ as bench
from tamiyo.evaluation.bench.bars import BARS, verdicts
from tamiyo.evaluation.bench.chain import messages
from tamiyo.evaluation.bench.codec import codec
from tamiyo.evaluation.bench.intake_latency import bucket_p99
from tamiyo.evaluation.bench.kafka import PARTITIONS
from tamiyo.evaluation.bench.learner import updates
from tamiyo.evaluation.bench.peers import PEERS
from tamiyo.evaluation.bench.policy import decisions
from tamiyo.evaluation.common.measure import Result, Spent, command, machine, percentile, repeat, versions
from tamiyo.evaluation.common.simulated_runs import Load, frames, topology
from tamiyo.evaluation.common.stage_bench import Bench, experiences, feed_all, kernels, stage_inputs, stages
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.streams.settings import WindowSettings

SMALL = Load(runs=2, layers=4, frames=12)
WIDTH = WindowSettings().width


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(SMALL, f"file://{tmp_path_factory.mktemp('store')}")


@pytest.fixture(scope="module")
def inputs(small: Bench) -> dict[str, Any]:
    return stage_inputs(SMALL, small)


def result(*values: float) -> Result:
    return Result("group", "name", "unit", values)


def test_results_summarise_their_repeats() -> None:
    one = result(3.0, 1.0, 2.0, 10.0)
    assert (one.minimum, one.median, one.maximum) == (1.0, 2.5, 10.0)
    values = one.to_dict()
    assert values["values"] == [3.0, 1.0, 2.0, 10.0]
    assert values["median"] == 2.5
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0), (0.99, 3.97)])
def test_percentiles_interpolate_between_ranks(q: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(expected)


def test_a_command_is_reported_without_its_folders() -> None:
    given = ["--minutes", "3", "--report", "/home/somebody/soak.json"]
    assert command("tamiyo.evaluation.soak", given) == "python -m tamiyo.evaluation.soak --minutes 3 --report soak.json"


def test_warm_up_is_left_out() -> None:
    costs = iter([Spent(9, 9), Spent(1, 1), Spent(2, 2)])
    assert repeat(lambda: next(costs), repeats=2) == [Spent(1, 1), Spent(2, 2)]


def test_the_machine_is_described_and_not_named() -> None:
    import platform

    described = machine()
    assert described["cores"] >= 1
    assert platform.node() not in json.dumps(described).split('"')
    assert {"torch", "fastavro", "confluent-kafka"} <= versions().keys()


def test_a_load_is_reproducible_and_states_its_size() -> None:
    first, again = (list(frames(SMALL, 1)) for _ in range(2))
    assert first == again
    assert list(frames(SMALL, 0)) != first
    rows = sum(len(frame.layer_id) for run in range(2) for frame in frames(SMALL, run) if hasattr(frame, "layer_id"))
    assert rows == SMALL.layer_signals == 2 * 2 * 4 * 12
    assert [frame.final for frame in first[-4:]] == [False, True, True, True]  # type: ignore[attr-defined]
    assert len(topology("run", 4).layers) == 4


def test_the_load_fills_as_many_windows_as_the_stages_emit(inputs: dict[str, Any]) -> None:
    assert len(inputs["graphs"].messages) == SMALL.windows(WIDTH) == 2 * 3


def test_loads_of_different_names_share_no_run() -> None:
    assert not set(Load(1, 1, 1, name="a").run_ids) & set(Load(1, 1, 1, name="b").run_ids)
    assert not set(Load(1, 1, 1, seed=1).run_ids) & set(Load(1, 1, 1, seed=2).run_ids)


def test_every_partition_gets_equally_many_messages() -> None:
    load = Load(runs=8, layers=2, frames=3)
    for made in (messages(load), *(peer.make(load) for peer in PEERS)):
        sizes = [0] * PARTITIONS
        for message in made:
            sizes[message.partition] += 1
        assert len(set(sizes)) == 1


def test_every_stage_is_measured_on_the_outputs_of_the_one_before_it(small: Bench, inputs: dict[str, Any]) -> None:
    assert list(inputs) == ["intake", "windows", "graphs", "decisions", "rewards"]
    assert len(inputs["intake"].messages) == len(inputs["windows"].messages) == 2 * 12 * 3
    found = stages(SMALL, small, inputs, repeats=2)
    assert [each.name for each in found] == list(inputs)
    for each in found:
        assert len(each.values) == 2
        assert min(each.values) > 0


def test_every_graph_of_the_load_has_a_decision(small: Bench, inputs: dict[str, Any]) -> None:
    outputs = feed_all(small.stage("decisions"), inputs["decisions"].messages)
    assert len({output.record.graph_id for output in outputs if isinstance(output.record, AdaptationDecision)}) == 6


def test_a_rejected_record_ends_the_measurement(small: Bench, inputs: dict[str, Any]) -> None:
    wrong = inputs["intake"].messages[0]
    record = wrong.record.model_copy(update={"companions": ["nowhere"]})
    with pytest.raises(RuntimeError, match="intake rejected"):
        feed_all(small.stage("intake"), [type(wrong)(wrong.topic, 0, 0, wrong.timestamp_ms, record)])


def test_kernels_decisions_updates_and_codec_are_measured(small: Bench, inputs: dict[str, Any]) -> None:
    (kernel,) = kernels(inputs, small, count=3, repeats=1)
    assert kernel.extra["blueprints"] == ["parallel_expansion", "low_rank", "bottleneck"]
    graphs = [each.record for each in inputs["decisions"].messages]
    latencies = decisions(graphs, seconds=0.01, repeats=1)
    assert [each.name for each in latencies] == ["1 graph waiting", "8 graphs waiting", "32 graphs waiting"]
    assert all(each.extra["p50_ms"] <= each.extra["p99_ms"] <= each.extra["maximum_ms"] for each in latencies)
    update, guard = updates(experiences(inputs, small), repeats=1)
    assert update.extra["fresh"] == 16
    assert update.extra["replayed"] == 112
    assert 0 < guard.values[0] < update.values[0]
    assert {"encode, 4 layers", "decode and validate, 4 layers"} <= {
        each.name for each in codec(layers=4, records=5, repeats=1)
    }


def test_the_plans_fit_the_embedded_broker() -> None:
    for plan in (bench.FULL, bench.QUICK):
        for made in (messages(plan.flow), *(peer.make(plan.flow) for peer in PEERS)):
            sizes: dict[tuple[str, int], int] = {}
            for message in made:
                place = message.topic, message.partition
                sizes[place] = sizes.get(place, 0) + len(message.value)
            assert max(sizes.values()) < 5 * 2**20
            assert len({partition for _, partition in sizes}) == PARTITIONS


BROKER_ROW = Result("on a broker", "telemetry to decision", "signals/s/core", (41_000.0, 39_000.0, 45_000.0))
SLOW_ROW = Result("on a broker", "telemetry to window", "signals/s/core", (14_000.0,))


def run_bench(monkeypatch: pytest.MonkeyPatch, report: Path, *, strict: bool) -> None:
    monkeypatch.setattr(bench, "in_memory", lambda plan: iter([("codec", lambda: [SLOW_ROW])]))
    monkeypatch.setattr(bench, "on_a_broker", lambda plan, where: iter([("chain", lambda: [BROKER_ROW])]))
    monkeypatch.setattr(bench, "broker", lambda kind: nullcontext(None))
    monkeypatch.setattr(bench, "configure", lambda level: None)
    bench.bench(quick=True, report=report, kind="embedded", strict=strict)


def test_the_report_has_a_row_a_result_and_every_bar_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_bench(monkeypatch, tmp_path / "bench.json", strict=False)
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [each["median"] for each in report["results"]] == [14_000.0, 41_000.0]
    assert report["quick"] is True
    assert report["machine"]["python"]
    assert report["versions"]["torch"]
    assert report["bars"].keys() == {bar.name for bar in BARS}
    assert report["bars"]["telemetry to decision"] == {"value": 41_000.0, "bar": 40_000.0, "met": True}
    assert report["bars"]["telemetry to window"] == {"value": 14_000.0, "bar": 14_724.0, "met": False}
    assert report["bars"]["learner update"] == {"value": None, "bar": 600.0, "met": False}
    printed = capsys.readouterr().out
    assert "Tamiyo, measured" in printed
    assert f"1 of {len(BARS)} bars met" in printed


def test_a_missed_bar_fails_only_a_strict_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run_bench(monkeypatch, tmp_path / "bench.json", strict=True)
    assert ended.value.code == 1
    assert (tmp_path / "bench.json").exists()


@pytest.mark.parametrize(
    ("name", "values", "extra", "met"),
    [
        ("telemetry to decision", (40_000.0,), {}, True),
        ("telemetry to decision", (39_999.0,), {}, False),
        ("learner update", (599.0,), {}, True),
        ("learner update", (600.0,), {}, False),
        ("decision p99, 1 graph", (9.0,), {"p99_ms": 2.9}, True),
        ("decision p99, 1 graph", (1.0,), {"p99_ms": 3.0}, False),
        ("SDK overhead, digits", (0.11,), {}, False),
    ],
)
def test_a_bar_is_judged_in_its_direction(name: str, values: tuple[float, ...], extra: Any, met: bool) -> None:
    (bar,) = [each for each in BARS if each.name == name]
    row = Result(bar.group, bar.row, bar.unit, values, extra=extra)
    (found,) = [each for each in verdicts([row]) if each.bar is bar]
    assert found.met is met
    assert [each.met for each in verdicts([row]) if each.bar is not bar] == [False] * (len(BARS) - 1)


def test_bars_have_different_names() -> None:
    assert len({bar.name for bar in BARS}) == len(BARS)


def test_the_percentile_of_a_histogram_is_that_of_the_time_between_two_samples() -> None:
    before = {0.001: 0.0, 0.01: 50.0, math.inf: 100.0}
    after = {0.001: 98.0, 0.01: 150.0, math.inf: 200.0}
    assert bucket_p99(before, after) == 0.01
    assert bucket_p99({}, {0.001: 99.0, 0.01: 99.0, math.inf: 100.0}) == 0.001
