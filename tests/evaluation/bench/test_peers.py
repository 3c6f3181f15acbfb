"""The peers: the same content as ours, the same checks, and the same statistics."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from tamiyo.evaluation.bench import quix_peer
from tamiyo.evaluation.bench.chain import messages
from tamiyo.evaluation.bench.numpy_windows import Windows
from tamiyo.evaluation.bench.peers import AIOKAFKA, FAUST, PEERS, QUIX, ratio
from tamiyo.evaluation.common.measure import Result
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.evaluation.common.stage_bench import Bench, stage_inputs
from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import BY_NAME, KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE
from tamiyo.streams.admin.topic_tail import to_json_values
from tamiyo.streams.settings import WindowSettings

SMALL = Load(runs=2, layers=4, frames=12)
WIDTH = WindowSettings().width


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> list[HealthWindow]:
    """Return our windows of the load."""
    inputs = stage_inputs(SMALL, Bench(SMALL, f"file://{tmp_path_factory.mktemp('store')}"))
    return [each.record for each in inputs["graphs"].messages]


def close(value: Any) -> Any:
    return value if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_ratio_pairs_medians_and_the_worst_with_the_best() -> None:
    mine, other = (Result("group", "name", "unit", values) for values in ((10.0, 20.0, 30.0), (2.0, 4.0, 5.0)))
    assert ratio(mine, other, "another").values == (2.0, 5.0, 15.0)


def test_quix_gets_the_same_content_one_signal_a_message() -> None:
    ours = [message for message in messages(SMALL) if message.topic in (KERNEL_PERFORMANCE.name, LAYER_HEALTH.name)]
    theirs = [json.loads(message.value) for message in QUIX.make(SMALL)]
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


@pytest.mark.parametrize("peer", [AIOKAFKA, FAUST], ids=lambda peer: peer.package)
def test_the_others_get_our_frames_on_topics_of_their_own(peer: Any) -> None:
    ours = [message for message in messages(SMALL) if message.topic in BY_NAME and "telemetry" in message.topic]
    theirs = list(peer.make(SMALL))
    assert [message.value for message in theirs] == [message.value for message in ours]
    assert {message.topic for message in theirs} == set(peer.sources)
    assert not {message.topic for message in ours} & set(peer.sources)


def test_peers_share_no_topic() -> None:
    names = [name for peer in PEERS for name in (*peer.sources, peer.target)]
    assert len(set(names)) == len(names)


def test_quix_computes_the_statistics_of_our_windows(ours: list[HealthWindow]) -> None:
    compared = 0
    for run, run_id in enumerate(SMALL.run_ids):
        moments: dict[tuple[str, int], dict[str, Any]] = {}
        for _, signal in quix_peer.signals(SMALL, run):
            assert quix_peer.valid(signal)
            place = signal["layer_id"], signal["step"] // WIDTH * WIDTH
            known = moments.get(place)
            scored = quix_peer.score(signal)
            moments[place] = quix_peer.begin(scored) if known is None else quix_peer.fold(known, scored)
        for window in (each for each in ours if each.run_id == run_id):
            for row, layer in enumerate(window.layer_id):
                theirs = quix_peer.statistics(moments[layer, window.start])
                for name, stats in window.metrics.items():
                    if not stats.count[row]:
                        assert name not in theirs
                        continue
                    for field, value in theirs[name].items():
                        assert getattr(stats, field)[row] == close(value), name
                        compared += 1
    assert compared > 1000


def raw(value: bytes) -> dict[str, Any]:
    """Return the fields of an encoded window, lists instead of columns."""
    return to_json_values(decode(value, HealthWindow))


def numpy_windows(order: Sequence[Any]) -> dict[tuple[str, int], dict[str, Any]]:
    windows = Windows(WIDTH)
    found = [(run_id, raw(value)) for each in order for run_id, value in windows.add(each.topic, each.value)]
    assert all(run_id == window["run_id"] for run_id, window in found)
    by_place = {(run_id, window["start"]): window for run_id, window in found}
    assert len(by_place) == len(found)
    return by_place


def same_window(window: HealthWindow, theirs: dict[str, Any]) -> int:
    """Compare a window with a peer's; return how many values were compared."""
    mine, compared = raw(encode(window)), 0
    for name in mine.keys() - {"window_id", "signals_digest", "metrics", "model_metrics"}:
        assert theirs[name] == mine[name], name
    for kind in ("metrics", "model_metrics"):
        assert theirs[kind].keys() >= mine[kind].keys()
        # Ours leaves a metric out that no frame of the window measured.
        assert not any(any(theirs[kind][name]["count"]) for name in theirs[kind].keys() - mine[kind].keys())
        for name, stats in mine[kind].items():
            for statistic, expected in stats.items():
                values = theirs[kind][name][statistic]
                expected, values = (each if isinstance(each, list) else [each] for each in (expected, values))
                assert values == [close(each) for each in expected], (name, statistic)
                compared += len(values)
    return compared


def test_the_numpy_windows_are_ours(ours: list[HealthWindow]) -> None:
    theirs = numpy_windows(list(AIOKAFKA.make(SMALL)))
    assert theirs.keys() == {(window.run_id, window.start) for window in ours}
    assert sum(same_window(window, theirs[window.run_id, window.start]) for window in ours) > 1000


def test_the_numpy_windows_are_ours_one_topic_after_the_other(ours: list[HealthWindow]) -> None:
    theirs = numpy_windows(sorted(AIOKAFKA.make(SMALL), key=lambda message: message.topic))
    assert theirs.keys() == {(window.run_id, window.start) for window in ours}
    for window in ours:
        same_window(window, theirs[window.run_id, window.start])


def frames_of(step: int, layers: list[str], latency: float, *, final: bool = False) -> list[tuple[str, bytes]]:
    companions = [KERNEL_PERFORMANCE.name, MODEL_PERFORMANCE.name]
    common: dict[str, Any] = {
        "run_id": "run", "step": step, "epoch": 0, "time_ms": step, "companions": companions, "final": final,
    }  # fmt: skip
    n = len(layers)
    kernel = KernelPerformance(
        **common, layer_id=layers, seed_id=[0] * n, chunk_id=[0] * n, execution_latency_ms=[latency] * n,
        cache_hit_rate=[1.0] * n, error_count=[0] * n, total_executions=[1] * n,
    )  # fmt: skip
    model = ModelPerformance(**common, train_loss=-1.0)
    return [(KERNEL_PERFORMANCE.name, encode(kernel)), (MODEL_PERFORMANCE.name, encode(model))]


def test_layers_may_come_and_go_within_a_window() -> None:
    windows = Windows(WIDTH)
    sent = [*frames_of(0, ["a", "b"], 1.0), *frames_of(10, ["b", "c"], 3.0, final=True)]
    ((_, value),) = [window for topic, frame in sent for window in windows.add(topic, frame)]
    window = raw(value)
    latency = window["metrics"]["execution_latency_ms"]
    assert window["layer_id"] == ["a", "b", "c"]
    assert (latency["count"], latency["mean"], latency["slope"]) == ([1, 2, 1], [1.0, 2.0, 3.0], [None, 0.2, None])
    assert window["final"] is True
    assert window["model_metrics"]["train_loss"]["mean"] == -1.0


def test_the_numpy_peers_leave_out_what_they_cannot_use() -> None:
    windows = Windows(WIDTH)
    assert windows.add(KERNEL_PERFORMANCE.name, b"nothing of ours") == []
    assert windows.add("telemetry.cache.hit_rates", b"") == []


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
@pytest.mark.parametrize("record", [KernelPerformance, LayerHealth])
def test_the_numpy_peers_check_values_as_intake_does(record: type[Any], value: float) -> None:
    topic = KERNEL_PERFORMANCE if record is KernelPerformance else LAYER_HEALTH
    column = "execution_latency_ms" if record is KernelPerformance else "gradient_norm"
    message = next(each for each in AIOKAFKA.make(Load(1, 2, 1)) if each.topic.endswith(topic.name))
    frame = decode(message.value, record)
    good = frame.model_copy(update={"companions": [topic.name]})
    wrong = good.model_copy(update={column: [value, 1.0]})
    assert len(Windows(WIDTH).add(topic.name, encode(good))) == 1
    assert Windows(WIDTH).add(topic.name, encode(wrong)) == []


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0])
def test_quix_checks_values_as_intake_does(value: float) -> None:
    signal = next(signal for _, signal in quix_peer.signals(SMALL, 0))
    assert quix_peer.valid(signal)
    signal["metrics"]["execution_latency_ms"] = value
    assert not quix_peer.valid(signal)
