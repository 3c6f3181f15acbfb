"""Windows: exact content, final once, whatever the order of arrival and wherever the process ends."""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.analysis import HealthSignals, HealthWindow
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import identity, window_id
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
    SIGNALS,
)
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stage import Said
from tamiyo.streams.windows import WindowsStage
from tests.streams.restarts import with_crashes, without_crashes
from tests.streams.telemetry import BEGAN_MS, COMPANIONS, as_said, incoming, outputs, partition, rejects, signal

KERNEL, LAYER, MODEL = COMPANIONS
LAYERS = ("a", "b")


def stage(**fields: Any) -> WindowsStage:
    return WindowsStage(0, WindowSettings(**{"idle_timeout_s": 0, **fields}), {})


def windows(said: Any) -> list[HealthWindow]:
    return [one.record for one in outputs(said)]


def frames(step: int, **fields: Any) -> list[HealthSignals]:
    """Return one step's frame of each companion."""
    return [
        signal(KERNEL, step, {"execution_latency_ms": [1.0 + step, None]}, layers=LAYERS, **fields),
        signal(LAYER, step, {"gradient_norm": [0.5, 0.25]}, layers=LAYERS, **fields),
        signal(MODEL, step, model_metrics={"train_loss": 2.0 - step / 100}, **fields),
    ]


def test_one_window_by_hand() -> None:
    log = [*frames(0), *frames(10), *frames(40), *frames(50)]
    windowing = stage()
    said = windowing.feed(partition(log))
    (output,) = outputs(said)
    record = output.record
    assert output.identity == record.window_id == window_id("run", "step", 50, 0)
    assert output.source is not None
    assert output.source.offset == 11  # the slowest companion's frame closed it
    assert (record.clock, record.start, record.end) == ("step", 0, 50)
    assert (record.first_step, record.last_step, record.time_ms) == (0, 40, BEGAN_MS + 40_000)
    assert (record.signals, record.frames, record.shed, record.final) == (12, 9, 0, False)
    assert record.signals_digest == identity("signals", *sorted(one.signal_id for one in log[:9]))
    assert record.layer_id == ["a", "b"]
    assert list(record.metrics) == ["execution_latency_ms", "gradient_norm"]
    latency = record.metrics["execution_latency_ms"]
    assert latency.count == [3, 0]
    assert latency.mean == [pytest.approx(53 / 3), None]  # 1, 11, 41
    assert latency.variance == [pytest.approx((1 + 121 + 1681) / 3 - (53 / 3) ** 2), None]
    assert (latency.minimum, latency.maximum, latency.last) == ([1.0, None], [41.0, None], [41.0, None])
    assert latency.slope == [pytest.approx(1.0), None]
    loss = record.model_metrics["train_loss"]
    assert (loss.count, loss.maximum, loss.minimum, loss.last) == (3, 2.0, 1.6, 1.6)
    assert loss.slope == pytest.approx(-0.01)
    assert decode(encode(record), HealthWindow) == record


def test_one_value_has_no_slope_and_no_variance() -> None:
    (record,) = windows(stage().feed(partition([*frames(10), *frames(50)])))
    assert record.metrics["gradient_norm"].slope == [None, None]
    assert record.metrics["gradient_norm"].variance == [0.0, 0.0]
    assert record.model_metrics["train_loss"].slope is None


def test_several_rows_of_a_layer_count_each_and_two_at_one_time_have_no_slope() -> None:
    twice = signal(KERNEL, 5, {"execution_latency_ms": [1.0, 3.0]}, layers=["a", "a"])
    (record,) = windows(stage().feed(partition([twice, *frames(5)[1:], *frames(60)])))
    latency = record.metrics["execution_latency_ms"]
    assert latency.count[0] == 2
    assert (latency.mean[0], latency.variance[0], latency.slope[0]) == (2.0, 1.0, None)


def test_the_watermark_waits_for_the_slowest_companion() -> None:
    windowing = stage()
    log = [one for step in range(0, 200, 10) for one in frames(step)]
    fast = [one for one in log if one.source != MODEL]
    slow = [one for one in log if one.source == MODEL]
    assert not windowing.feed(partition(fast))
    said = windowing.feed(partition(slow, first=len(fast)))
    assert [record.start for record in windows(said)] == [0, 50, 100]
    assert all(record.frames == 15 for record in windows(said))


def test_without_companions_the_sources_seen_decide() -> None:
    log = [signal(KERNEL, step, layers=["a"], metrics={"x": [1.0]}, companions=[]) for step in (0, 50)]
    assert [record.start for record in windows(stage().feed(partition(log)))] == [0]
    only_errors = [signal(ERROR_RECOVERY.name, step, companions=[]) for step in (0, 50, 100)]
    assert not stage().feed(partition(only_errors))  # errors come when they come: they say nothing about the rest


def test_delay_and_grace_put_the_end_off() -> None:
    for fields in ({"delay": 20}, {"grace": 20}, {"delay": 10, "grace": 10}):
        windowing = stage(**fields)
        assert not windowing.feed(partition([*frames(0), *frames(60)]))
        (record,) = windows(windowing.feed(partition([*frames(49), *frames(70)], first=6)))
        assert record.frames == 6, fields


def test_late_signals_are_refused_with_the_reason() -> None:
    windowing = stage()
    late = signal(ERROR_RECOVERY.name, 20, {"recovery_errors": [1.0]}, layers=["a"], companions=[])
    said = windowing.feed(partition([*frames(0), *frames(50), late]))
    assert len(outputs(said)) == 1
    (refused,) = rejects(said)
    assert refused.late
    assert refused.source.record is late
    assert "up to 50 were final" in refused.reason
    assert windowing.counts["late"] == 1


def test_an_empty_window_is_not_emitted_but_is_final() -> None:
    windowing = stage()
    said = windowing.feed(partition([*frames(0), *frames(150), signal(CACHE_HIT_RATES.name, 60, companions=[])]))
    assert [record.start for record in windows(said)] == [0]
    assert rejects(said)[0].late


def test_repeats_count_once_in_open_and_in_closed_windows() -> None:
    log = [*frames(0), *frames(0), *frames(50), *frames(0), *frames(50)]
    windowing = stage()
    said = windowing.feed(partition(log))
    assert not rejects(said)
    assert windows(said)[0].frames == 3
    assert windowing.counts["repeated"] == 9
    assert windowing.flush()[0].record.frames == 3


def test_last_frames_of_all_companions_close_everything() -> None:
    windowing = stage()
    log = [*frames(0), *frames(40), *frames(70), *frames(70, final=True)]
    assert [record.start for record in windows(windowing.feed(partition(log[:-1])))] == [0]
    (record,) = windows(windowing.feed(partition(log[-1:], first=len(log) - 1)))
    assert (record.start, record.final, record.frames) == (50, True, 6)
    assert windowing.open_offsets() == {}


def test_several_windows_may_close_at_the_end_and_only_the_last_says_so() -> None:
    log = [*frames(0), *frames(60)[:2], *frames(120, final=True)]
    said = windows(stage().feed(partition(log)))
    assert [(record.start, record.final) for record in said] == [(0, False), (50, False), (100, True)]


def test_event_time_clock() -> None:
    windowing = stage(clock="time", width=60_000)
    said = windows(windowing.feed(partition([*frames(0), *frames(20), *frames(100)])))
    (record,) = said
    assert record.start == BEGAN_MS // 60_000 * 60_000
    assert record.clock == "time"
    assert record.metrics["execution_latency_ms"].slope[0] == pytest.approx(0.001)  # 20 a step, a step is 1,000 ms
    assert (record.first_step, record.last_step) == (0, 20)


def test_idle_runs_close_on_the_logs_own_time() -> None:
    windowing = stage(idle_timeout_s=30)
    windowing.feed(partition([*frames(0), *frames(10)]))
    assert not windowing.tick(5_000_000)  # whatever the wall clock says: the log has only just gone quiet
    assert not windowing.tick(5_029_999)
    (record,) = windows(windowing.tick(5_030_000))
    assert (record.start, record.frames, record.final) == (0, 6, False)
    assert windowing.open_offsets() == {}
    assert not windowing.tick(9_000_000)


def test_catching_up_is_not_silence() -> None:
    windowing = stage(idle_timeout_s=30)
    one = [incoming(record, offset=n) for n, record in enumerate(frames(0))]
    other = [incoming(record, offset=n) for n, record in enumerate(frames(20, run_id="other"), 3)]
    windowing.feed(one)
    windowing.tick(0)
    windowing.tick(29_000)
    windowing.feed(other)  # 20 s later in the log
    assert not windowing.tick(40_000)
    assert not windowing.tick(49_000)
    assert [record.run_id for record in windows(windowing.tick(50_000))] == ["run"]
    assert [record.run_id for record in windows(windowing.tick(70_000))] == ["other"]


def test_a_replays_end_says_what_idleness_would_have_said() -> None:
    log = partition([*frames(0), *frames(20), *frames(60)])
    live, replayed = stage(idle_timeout_s=10), stage(idle_timeout_s=0)
    first, again = live.feed(log), replayed.feed(log)
    live.tick(0)
    idle = live.tick(60_000)
    assert replayed.tick(0) == replayed.tick(10**12) == ()
    ended = replayed.flush()
    assert len(outputs(idle)) == len(outputs(ended)) == 1
    assert [encode(one.record) for one in outputs([*first, *idle])] == [
        encode(one.record) for one in outputs([*again, *ended])
    ]


def test_a_last_frame_is_not_late_where_idleness_closed_its_window() -> None:
    log = partition([*frames(0), *frames(10), *frames(10, final=True), signal(ERROR_RECOVERY.name, 10, companions=[])])
    windowing = stage(idle_timeout_s=30)
    published = outputs(windowing.feed(log[:6]))
    windowing.tick(0)
    published += outputs(windowing.tick(30_000))
    said = windowing.feed(log[6:])
    (last,) = outputs(said)
    assert (last.record.start, last.record.final, last.record.frames, last.record.last_step) == (50, True, 3, 10)
    assert [one.source.offset for one in rejects(said)] == [9]
    # A restart that reads all of it again says nothing new, and refuses the same straggler.
    again = stage(idle_timeout_s=30)
    again.recall(as_said([*published, last]))
    said = again.feed(log)
    assert not outputs(said)
    assert [one.source.offset for one in rejects(said)] == [9]
    assert again.open_offsets() == {}
    # One that had not heard of the last window finds it again, to the bit.
    third = stage(idle_timeout_s=30)
    third.recall(as_said(published))
    (found,) = outputs(third.feed(log))
    assert encode(found.record) == encode(last.record)


def test_values_that_cannot_be_are_refused() -> None:
    bad = signal(MODEL, 0, model_metrics={"train_loss": 1e300})
    worse = signal(KERNEL, 0, {"x": [1e40]}, layers=["a"])
    said = stage().feed(partition([bad, worse, *frames(0), *frames(50)]))
    assert [one.late for one in rejects(said)] == [False, False]
    assert windows(said)[0].frames == 3


def test_too_many_layers_are_refused() -> None:
    first = signal(KERNEL, 0, layers=[f"a{n}" for n in range(6_000)])
    second = signal(KERNEL, 10, layers=[f"b{n}" for n in range(6_000)])
    (refused,) = stage().feed(partition([first, second]))
    assert "12000 layers" in rejects([refused])[0].reason


def test_open_signals_are_bounded() -> None:
    windowing = stage(max_open_signals=10)
    ahead = [signal(KERNEL, step, {"x": [1.0] * 4}, layers=["a", "b", "c", "d"]) for step in (0, 50, 100)]
    said = windowing.feed(partition(ahead))
    assert [(record.start, record.signals) for record in windows(said)] == [(0, 4)]
    assert windowing.counts["forced"] == 1
    behind = windowing.feed(partition([signal(MODEL, 0)], first=3))
    assert rejects(behind)[0].late


def test_open_runs_are_bounded() -> None:
    windowing = stage(max_open_runs=3)
    said = windowing.feed(partition([signal(KERNEL, 0, run_id=f"run-{n}") for n in range(5)]))
    assert [record.run_id for record in windows(said)] == ["run-0", "run-1"]
    assert windowing.open_offsets() == {SIGNALS.name: 2}


def test_open_offsets_are_the_oldest_open_signals() -> None:
    windowing = stage()
    assert windowing.open_offsets() == {}
    log = [*frames(0), *frames(50, run_id="other"), *frames(50), *frames(100)]
    seen = []
    for one in partition(log):
        windowing.feed([one])
        seen.append(windowing.open_offsets()[SIGNALS.name])
    assert seen == [0] * 8 + [3] * 4


def test_bookkeeping_stays_small_while_an_old_window_stays_open() -> None:
    windowing = stage(width=1)
    windowing.feed(partition([signal(KERNEL, 0, run_id="stuck")]))
    for step in range(3_000):
        windowing.feed([incoming(signal(KERNEL, step, companions=[]), offset=1 + step)])
    assert windowing.open_offsets() == {SIGNALS.name: 0}
    assert len(windowing._first_offsets) < 1_100


def test_recall_without_sources_still_keeps_what_was_final() -> None:
    log = partition([*frames(0), *frames(50)])
    (output,) = outputs(stage().feed(log))
    again = stage()
    again.recall([Said("tamiyo.health.windows", 0, output.record, output.identity)])
    assert not outputs(again.feed(log))


def test_repeats_are_known_after_a_restart_and_after_the_runs_end() -> None:
    log = partition([*frames(0), *frames(50), *frames(100, final=True)])
    said = stage().feed(log)
    # A worker that lost the partition may repeat itself behind what its successor has said already.
    again = [incoming(one.record, offset=len(log) + number) for number, one in enumerate(log)]
    for first in (0, len(log)):  # the restart reads everything again, or begins behind what was committed
        restarted = stage()
        restarted.recall(as_said(outputs(said)))
        assert restarted.feed([*log[first:], *again]) == []
        assert restarted.counts["repeated"] == len(log) - first + len(again)
    stranger = incoming(signal(KERNEL, 20), offset=2 * len(log))
    assert [each.late for each in rejects(restarted.feed([stranger]))] == [True]


# Laws


def run_streams(rng: random.Random, run_id: str, steps: int, interval: int = 10) -> dict[str, list[HealthSignals]]:
    """Return each companion's signals of a run, in order; errors come in the order of kernel performance."""
    layers = [f"layer.{n}" for n in range(rng.randint(1, 4))]
    streams: dict[str, list[HealthSignals]] = {source: [] for source in COMPANIONS}

    def values(scale: float) -> list[float | None]:
        return [None if rng.random() < 0.2 else rng.gauss(scale, 1) * 10 ** rng.randint(-6, 6) for _ in layers]

    for number in range(steps):
        step, last = number * interval, number == steps - 1
        common: dict[str, Any] = {"run_id": run_id, "final": last, "shed": rng.randint(0, 2)}
        if rng.random() < 0.2:
            error = {"recovery_errors": [1.0], "latency": [rng.random()]}
            streams[KERNEL].append(
                signal(ERROR_RECOVERY.name, step, error, layers=[layers[-1]], run_id=run_id, companions=[])  # type: ignore[arg-type]
            )
        seen = rng.sample(layers, rng.randint(0, len(layers)))
        latency = [rng.expovariate(1) for _ in seen]
        streams[KERNEL].append(signal(KERNEL, step, {"latency": [*latency]}, layers=seen, **common))
        streams[LAYER].append(signal(LAYER, step, {"norm": values(0), "score": values(3)}, layers=layers, **common))
        streams[MODEL].append(signal(MODEL, step, model_metrics={"loss": rng.gauss(2, 1)}, **common))
    return streams


def interleave(rng: random.Random, streams: Sequence[Sequence[HealthSignals]]) -> list[HealthSignals]:
    """Merge streams at random, each in its own order."""
    heads = [index for index, stream in enumerate(streams) for _ in stream]
    rng.shuffle(heads)
    iterators = [iter(stream) for stream in streams]
    return [next(iterators[head]) for head in heads]


def of_run(said: Any, run_id: str) -> list[bytes]:
    return [encode(record) for record in windows(said) if record.run_id == run_id]


def fit(points: list[tuple[int, float]]) -> dict[str, Any]:
    """Return one metric's statistics in exact arithmetic."""
    values = [Fraction(value) for _, value in points]
    times = [Fraction(time) for time, _ in points]
    n = len(points)
    mean, middle = sum(values) / n, sum(times) / n
    spread = sum((time - middle) ** 2 for time in times)
    across = sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True))
    return {
        "count": n,
        "mean": float(mean),
        "variance": float(sum((value - mean) ** 2 for value in values) / n),
        "minimum": float(min(values)),
        "maximum": float(max(values)),
        "last": points[-1][1],
        "slope": float(across / spread) if spread else None,
    }


def assert_fits(found: dict[str, Any], points: list[tuple[int, float]]) -> None:
    expected = fit(points)
    scale = max(abs(value) for _, value in points)
    for name in ("count", "minimum", "maximum", "last"):
        assert found[name] == expected[name]
    assert found["mean"] == pytest.approx(expected["mean"], rel=1e-12, abs=1e-12 * scale)
    assert found["variance"] == pytest.approx(expected["variance"], rel=1e-9, abs=1e-12 * scale**2)
    if expected["slope"] is None:
        assert found["slope"] is None
    else:
        assert found["slope"] == pytest.approx(expected["slope"], rel=1e-9, abs=1e-12 * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 120))
def test_order_of_arrival_shows_in_no_bit(seed: int, steps: int, width: int) -> None:
    rng = random.Random(seed)
    streams = [s for run_id in ("one", "two") for s in run_streams(rng, run_id, steps).values()]
    first = stage(width=width).feed(partition(interleave(rng, streams)))
    windowing = stage(width=width)
    second = [one for each in partition(interleave(rng, streams)) for one in windowing.feed([each])]
    assert not rejects(first)
    assert not rejects(second)
    for run_id in ("one", "two"):
        assert of_run(first, run_id) == of_run(second, run_id) != []
    assert windowing.open_offsets() == {}
    assert windowing._rows == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 120))
def test_windows_equal_a_pure_recomputation(seed: int, steps: int, width: int) -> None:
    rng = random.Random(seed)
    streams = run_streams(rng, "run", steps)
    log = interleave(rng, list(streams.values()))
    found = {record.start: record for record in windows(stage(width=width).feed(partition(log)))}
    expected: dict[int, list[HealthSignals]] = {}
    for one in sorted(log, key=lambda each: (each.step, each.source)):
        expected.setdefault(one.step // width * width, []).append(one)
    assert found.keys() == expected.keys()
    for start, inside in expected.items():
        record = found[start]
        assert (record.frames, record.shed) == (len(inside), sum(one.shed for one in inside))
        assert record.signals == sum(len(one.layer_id) for one in inside)
        assert record.layer_id == list(dict.fromkeys(layer for one in inside for layer in one.layer_id))
        assert record.final == (start == max(expected))
        points: dict[tuple[str, str], list[tuple[int, float]]] = {}
        whole: dict[str, list[tuple[int, float]]] = {}
        for one in inside:
            for name, column in one.metrics.items():
                for layer, value in zip(one.layer_id, column, strict=True):
                    if value is not None:
                        points.setdefault((name, layer), []).append((one.step, value))
            for name, number in one.model_metrics.items():
                whole.setdefault(name, []).append((one.step, number))
        for name, stats in record.metrics.items():
            for row, layer in enumerate(record.layer_id):
                here = {field: column[row] for field, column in stats.model_dump().items()}
                if (name, layer) in points:
                    assert_fits(here, points[name, layer])
                else:
                    assert here == dict.fromkeys(here, None) | {"count": 0}
        assert {name for name, _ in points} <= record.metrics.keys()
        assert record.model_metrics.keys() == whole.keys()
        for name, summary in record.model_metrics.items():
            assert_fits(summary.model_dump(), whole[name])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 40), st.sampled_from([10, 35, 50]), st.sampled_from([0, 15]))
def test_a_restart_at_any_moment_changes_nothing(seed: int, steps: int, width: int, delay: int) -> None:
    rng = random.Random(seed)
    streams = [s for run_id in ("one", "two", "three") for s in run_streams(rng, run_id, steps).values()]
    # Stragglers, repeats, and errors that come late: whatever they lead to, they lead to again.
    log = interleave(rng, streams)
    for _ in range(10):
        log.insert(rng.randrange(len(log)), rng.choice(log))
        straggler = signal(CACHE_HIT_RATES.name, rng.randrange(10 * steps), run_id="one", companions=[])
        log.insert(rng.randrange(len(log)), straggler)
    fed = partition(log)

    def make() -> WindowsStage:
        return stage(width=width, delay=delay)

    expected = without_crashes(make(), fed)
    found = with_crashes(make, fed, rng)
    once = {one.identity: encode(one.record) for one in outputs(found)}
    assert len(once) == len(outputs(found)), "a window was said twice"
    assert once == {one.identity: encode(one.record) for one in outputs(expected)}
    late = {one.source.offset for one in rejects(expected)}
    repeated = {one.source.offset for one in rejects(found)} - late
    # A repeat of a signal in a window that only the stage before the crash held may be called late; nothing else may.
    assert all(log.index(log[offset]) < offset for offset in repeated)
    assert late <= {one.source.offset for one in rejects(found)}
