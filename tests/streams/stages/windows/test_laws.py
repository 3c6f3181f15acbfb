"""Laws of windows for every log: order of arrival, recomputation, restarts."""

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.schemas.analysis import STATISTICS, HealthSignals
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.columns import entries
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
)
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.restarts import with_crashes, without_crashes
from tests.support.telemetry import (
    COMPANIONS,
    outputs,
    partition,
    prior_outputs,
    rejects,
    signal,
    windows,
    windows_stage,
)

KERNEL, LAYER, MODEL = COMPANIONS


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


def of_run(produced: Any, run_id: str) -> list[bytes]:
    return [encode(record) for record in windows(produced) if record.run_id == run_id]


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


def assert_fits(actual: dict[str, Any], points: list[tuple[int, float]]) -> None:
    expected = fit(points)
    scale = max(abs(value) for _, value in points)
    for name in ("count", "minimum", "maximum", "last"):
        assert actual[name] == expected[name]
    assert actual["mean"] == pytest.approx(expected["mean"], rel=1e-12, abs=1e-12 * scale)
    assert actual["variance"] == pytest.approx(expected["variance"], rel=1e-9, abs=1e-12 * scale**2)
    if expected["slope"] is None:
        assert actual["slope"] is None
    else:
        assert actual["slope"] == pytest.approx(expected["slope"], rel=1e-9, abs=1e-12 * scale)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 120))
def test_the_order_of_arrival_changes_no_bit(seed: int, steps: int, width: int) -> None:
    rng = random.Random(seed)
    streams = [s for run_id in ("one", "two") for s in run_streams(rng, run_id, steps).values()]
    first = windows_stage(width=width).feed(partition(interleave(rng, streams)))
    stage = windows_stage(width=width)
    second = [one for each in partition(interleave(rng, streams)) for one in stage.feed([each])]
    assert not rejects(first)
    assert not rejects(second)
    for run_id in ("one", "two"):
        assert of_run(first, run_id) == of_run(second, run_id) != []
    assert stage.open_offsets() == {}
    assert stage._open.rows == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(1, 120))
def test_windows_equal_a_pure_recomputation(seed: int, steps: int, width: int) -> None:
    rng = random.Random(seed)
    streams = run_streams(rng, "run", steps)
    log = interleave(rng, list(streams.values()))
    actual = {record.start: record for record in windows(windows_stage(width=width).feed(partition(log)))}
    expected: dict[int, list[HealthSignals]] = {}
    for one in sorted(log, key=lambda each: (each.step, each.source)):
        expected.setdefault(one.step // width * width, []).append(one)
    assert actual.keys() == expected.keys()
    for start, inside in expected.items():
        record = actual[start]
        assert (record.frames, record.shed) == (len(inside), sum(one.shed for one in inside))
        steps = [one.step for one in inside]
        assert (record.first_step, record.last_step) == (min(steps), max(steps))
        assert record.signals == sum(len(one.layer_id) for one in inside)
        assert record.layer_id == list(dict.fromkeys(layer for one in inside for layer in one.layer_id))
        assert record.final == (start == max(expected))
        points: dict[tuple[str, str], list[tuple[int, float]]] = {}
        whole: dict[str, list[tuple[int, float]]] = {}
        for one in inside:
            for name, column in one.metrics.items():
                for layer, value in zip(one.layer_id, entries(column), strict=True):
                    if value is not None:
                        points.setdefault((name, layer), []).append((one.step, value))
            for name, number in one.model_metrics.items():
                whole.setdefault(name, []).append((one.step, number))
        for name, stats in record.metrics.items():
            for row, layer in enumerate(record.layer_id):
                here = {field: entries(getattr(stats, field))[row] for field in STATISTICS}
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
    # Stragglers, repeats and late errors: a restart must treat each as the first run did.
    log = interleave(rng, streams)
    for _ in range(10):
        log.insert(rng.randrange(len(log)), rng.choice(log))
        straggler = signal(CACHE_HIT_RATES.name, rng.randrange(10 * steps), run_id="one", companions=[])
        log.insert(rng.randrange(len(log)), straggler)
    fed = partition(log)

    def make() -> WindowsStage:
        return windows_stage(width=width, delay=delay)

    expected = without_crashes(make(), fed)
    crashed = with_crashes(make, fed, rng)
    once = {one.identity: encode(one.record) for one in outputs(crashed)}
    assert len(once) == len(outputs(crashed)), "a window was published twice"
    assert once == {one.identity: encode(one.record) for one in outputs(expected)}
    late = {one.source.offset for one in rejects(expected)}
    repeated = {one.source.offset for one in rejects(crashed)} - late
    # A repeat may become late if only the stage before the crash held the original's window; nothing else may.
    assert all(log.index(log[offset]) < offset for offset in repeated)
    assert late <= {one.source.offset for one in rejects(crashed)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(5, 30), st.integers(0, 100))
def test_workers_of_the_last_release_and_of_this_one_lose_and_double_no_window(
    seed: int, steps: int, turn: int
) -> None:
    rng = random.Random(seed)
    log = interleave(rng, [s for run_id in ("one", "two") for s in run_streams(rng, run_id, steps).values()])
    expected = {one.identity: encode(one.record) for one in outputs(windows_stage().feed(partition(log)))}

    def of_either(record: Any, old: bool) -> Any:
        return decode(encode_released(record) if old else encode(record), type(record))

    # First the windows are computed by a worker of the last release, then, after it has ended, by one of this release,
    # which restores what the other has published; all the while, intakes of both releases write signals.
    fed = partition([of_either(record, rng.random() < 0.5) for record in log])
    cut = len(fed) * turn // 100
    first = windows_stage()
    published = outputs(first.feed(fed[:cut]))
    second = windows_stage()
    second.restore(replace(each, record=of_either(each.record, True)) for each in prior_outputs(published))
    committed = min(first.open_offsets().values(), default=cut)
    done = {one.identity for one in published}
    published += [one for one in outputs(second.feed(fed[committed:])) if one.identity not in done]
    assert len(published) == len(expected)
    assert {one.identity: encode(one.record) for one in published} == expected
