"""The benchmark: equal content for the stages and the peer, arithmetic, and reports."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tamiyo.evaluation.bench import __main__ as bench
from tamiyo.evaluation.bench import quix_peer
from tamiyo.evaluation.bench.chain import messages, peer_messages, ratio
from tamiyo.evaluation.bench.codec import codec
from tamiyo.evaluation.bench.kafka import PARTITIONS
from tamiyo.evaluation.bench.learner import updates
from tamiyo.evaluation.bench.policy import decisions
from tamiyo.evaluation.common.measure import Result, Spent, command, machine, percentile, repeat, versions
from tamiyo.evaluation.common.simulated_runs import Load, frames, topology
from tamiyo.evaluation.common.stage_bench import Bench, experiences, feed_all, kernels, stage_inputs, stages
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.codec import decode
from tamiyo.schemas.telemetry import KernelPerformance
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH
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


def test_the_ratio_pairs_medians_and_the_worst_with_the_best() -> None:
    found = ratio(result(10.0, 20.0, 30.0), result(2.0, 4.0, 5.0))
    assert found.values == (2.0, 5.0, 15.0)


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
    for made in (messages(load), peer_messages(load)):
        sizes = [0] * PARTITIONS
        for message in made:
            sizes[message.partition] += 1
        assert len(set(sizes)) == 1


def test_the_peer_gets_the_same_content_one_signal_a_message() -> None:
    ours = [message for message in messages(SMALL) if message.topic in (KERNEL_PERFORMANCE.name, LAYER_HEALTH.name)]
    theirs = [json.loads(message.value) for message in peer_messages(SMALL)]
    assert len(theirs) == SMALL.layer_signals
    assert sum(len(_rows(message)) for message in ours) == len(theirs)
    frame = decode(ours[0].value, KernelPerformance)
    (same,) = [
        each
        for each in theirs
        if (each["run_id"], each["step"], each["layer_id"], each["source"])
        == (frame.run_id, frame.step, frame.layer_id[2], "kernel_performance")
    ]
    assert same["metrics"] == {name: getattr(frame, name)[2] for name in same["metrics"]}
    assert same["metrics"].keys() == {
        "execution_latency_ms", "cache_hit_rate", "error_count", "total_executions", "activation_variance",
        "dead_neuron_ratio", "avg_correlation",
    }  # fmt: skip


def _rows(message: Any) -> Sequence[str]:
    record = KERNEL_PERFORMANCE.record if message.topic == KERNEL_PERFORMANCE.name else LAYER_HEALTH.record
    return decode(message.value, record).layer_id  # type: ignore[attr-defined, no-any-return]


def test_the_peer_computes_the_statistics_of_our_windows(inputs: dict[str, Any]) -> None:
    windows: list[HealthWindow] = [each.record for each in inputs["graphs"].messages]
    compared = 0
    for run, run_id in enumerate(SMALL.run_ids):
        moments: dict[tuple[str, int], dict[str, Any]] = {}
        for _, signal in quix_peer.signals(SMALL, run):
            assert quix_peer.valid(signal)
            place = signal["layer_id"], signal["step"] // WIDTH * WIDTH
            known = moments.get(place)
            scored = quix_peer.score(signal)
            moments[place] = quix_peer.begin(scored) if known is None else quix_peer.fold(known, scored)
        for window in (each for each in windows if each.run_id == run_id):
            for row, layer in enumerate(window.layer_id):
                theirs = quix_peer.statistics(moments[layer, window.start])
                for name, stats in window.metrics.items():
                    if not stats.count[row]:
                        assert name not in theirs
                        continue
                    for field, value in theirs[name].items():
                        mine = getattr(stats, field)[row]
                        assert mine == (value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), name
                        compared += 1
    assert compared > 1000


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_the_peer_checks_values_as_intake_does(value: float) -> None:
    signal = next(signal for _, signal in quix_peer.signals(SMALL, 0))
    assert quix_peer.valid(signal)
    signal["metrics"]["execution_latency_ms"] = value
    assert not quix_peer.valid(signal)


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
        for made in (messages(plan.flow), peer_messages(plan.flow)):
            sizes: dict[tuple[str, int], int] = {}
            for message in made:
                place = message.topic, message.partition
                sizes[place] = sizes.get(place, 0) + len(message.value)
            assert max(sizes.values()) < 5 * 2**20
            assert len({partition for _, partition in sizes}) == PARTITIONS


def test_the_report_has_a_row_a_result_and_everything_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr(bench, "in_memory", lambda plan: iter([[result(1.0, 2.0)]]))
    monkeypatch.setattr(bench, "on_a_broker", lambda plan, where: iter([[result(5.0)]]))
    monkeypatch.setattr(bench, "broker", lambda kind: nullcontext(None))
    monkeypatch.setattr(bench, "configure", lambda level: None)
    bench.bench(quick=True, json_file=tmp_path / "bench.json", kind="embedded")
    report = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [each["median"] for each in report["results"]] == [1.5, 5.0]
    assert report["quick"] is True
    assert report["machine"]["python"]
    assert report["versions"]["torch"]
    assert "Tamiyo, measured" in capsys.readouterr().out
