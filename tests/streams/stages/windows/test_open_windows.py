"""The open windows of a partition: what is held, and the oldest of it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.errors import RecordError
from tamiyo.streams.stages.windows.classification import Window
from tamiyo.streams.stages.windows.open_windows import MAX_LAYOUTS, OpenWindows
from tests.support.telemetry import COMPANIONS, incoming, signal

KERNEL, LAYER, MODEL = COMPANIONS


def add(windows: OpenWindows, offset: int, run_id: str = "run", *, step: int = 0, rows: int = 1) -> None:
    layers = [f"layer.{number}" for number in range(rows)]
    one = signal(KERNEL, step, {"x": [1.0] * rows}, layers=layers, run_id=run_id, signal_id=f"{offset:032x}")
    windows.add(incoming(one, offset=offset), Window(step // 50 * 50, step))


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_totals_and_the_lowest_offset_follow_what_is_open(seed: int) -> None:
    rng = random.Random(seed)
    windows = OpenWindows()
    held: dict[tuple[str, int], list[tuple[int, int]]] = {}  # (offset, rows) by run and start
    order: list[str] = []
    newest: dict[str, int] = {}
    for offset in range(200):
        run_id, step = rng.choice("abc"), rng.randrange(300)
        if rng.random() < 0.6 or not held:
            rows = rng.randint(0, 3)
            add(windows, offset, run_id, step=step, rows=rows)
            held.setdefault((run_id, step // 50 * 50), []).append((offset, rows))
            order = [name for name in order if name != run_id] + [run_id]
            newest[run_id] = offset
        else:
            run_id, start = rng.choice(list(held))
            run = windows.run(run_id)
            assert run is not None
            closed = windows.close(run, start)
            inside = held.pop((run_id, start))
            assert (closed.start, closed.offset, closed.rows) == (start, inside[0][0], sum(n for _, n in inside))
            assert list(closed.contributions) == [f"{at:032x}" for at, _ in inside]
            if not any(name == run_id for name, _ in held):
                order.remove(run_id)
                assert windows.run(run_id) is None
        by_run = {name: sum(n for (of, _), inside in held.items() if of == name for _, n in inside) for name in order}
        assert [run.run_id for run in windows] == order
        assert [run.last.offset for run in windows] == [newest[name] for name in order]
        assert len(windows) == len(order)
        assert [run.rows for run in windows] == list(by_run.values())
        assert windows.rows == sum(by_run.values())
        if order:
            assert windows.fullest().rows == max(by_run.values())
        expected = min((at for inside in held.values() for at, _ in inside), default=None)
        assert windows.lowest_offset() == expected


def test_a_signal_that_cannot_be_used_changes_nothing() -> None:
    windows = OpenWindows()
    bad = signal(KERNEL, 0, {"x": [1e40]}, layers=["a"])
    with pytest.raises(RecordError, match="largest that can be measured"):
        windows.add(incoming(bad), Window(0, 0))
    assert len(windows) == windows.rows == 0
    assert windows.lowest_offset() is None
    add(windows, 3)
    with pytest.raises(RecordError):
        windows.add(incoming(bad, offset=4), Window(50, 50))
    (run,) = windows
    assert list(run.windows) == [0]
    assert run.last.offset == 3
    assert (run.rows, windows.rows) == (1, 1)


@pytest.mark.parametrize("value", [1e39, -1e39])
def test_the_largest_value_is_still_accepted_and_not_measured_is_no_value(value: float) -> None:
    windows = OpenWindows()
    windows.add(incoming(signal(KERNEL, 0, {"x": [value, None]}, {"loss": value}, layers=["a", "b"])), Window(0, 0))
    assert windows.rows == 2
    for beyond in (
        signal(KERNEL, 10, {"x": [None, 1.1 * value]}, layers=["a", "b"]),
        signal(KERNEL, 10, model_metrics={"loss": 1.1 * value}),
    ):
        with pytest.raises(RecordError, match="beyond 1e\\+39"):
            windows.add(incoming(beyond), Window(0, 10))


def test_a_window_may_have_as_many_layers_as_a_record() -> None:
    windows = OpenWindows()
    windows.add(incoming(signal(KERNEL, 0, layers=[f"a{n}" for n in range(6_000)])), Window(0, 0))
    windows.add(incoming(signal(LAYER, 0, layers=[f"b{n}" for n in range(4_000)]), offset=1), Window(0, 0))
    one_more = incoming(signal(MODEL, 0, layers=["c"]), offset=2)
    with pytest.raises(RecordError, match="10001 layers; 10000 are allowed"):
        windows.add(one_more, Window(0, 0))
    windows.add(one_more, Window(50, 50))  # another window has layers of its own


def test_frames_of_a_run_share_their_layers_up_to_a_bound() -> None:
    windows = OpenWindows()
    for step in range(2):
        for rows in range(1, 2 * MAX_LAYOUTS):
            add(windows, 200 * step + rows, step=step, rows=rows)
    (run,) = windows
    contributions = list(run.windows[0].contributions.values())
    first, second = contributions[: len(contributions) // 2], contributions[len(contributions) // 2 :]
    shared = [one.layers is other.layers for one, other in zip(first, second, strict=True)]
    assert shared == [rows <= MAX_LAYOUTS for rows in range(1, 2 * MAX_LAYOUTS)]
    assert len(run.layouts) == MAX_LAYOUTS


def test_windows_pass_with_the_watermark_less_delay_and_grace() -> None:
    windows = OpenWindows()
    for offset, step in enumerate((0, 50, 100, 149)):
        one = signal(KERNEL, step, {"x": [1.0]}, layers=["a"], companions=[KERNEL])
        windows.add(incoming(one, offset=offset), Window(step // 50 * 50, step))
    (run,) = windows
    assert run.advance(delay=50, grace=50, width=50) == []
    assert run.passed == 0
    assert run.advance(delay=0, grace=49, width=50) == [0, 50]
    assert run.passed == 100
    assert run.advance(delay=50, grace=50, width=50) == [0, 50]  # what has passed stays passed
