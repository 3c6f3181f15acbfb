"""Lines, bars and charts of characters."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.watch.terminal.canvas import Canvas, action, age, count, gain, number, resampled, size, words

CURVES = st.lists(st.none() | st.floats(-1e300, 1e300), max_size=200)


def test_a_sparkline_is_as_high_as_its_values() -> None:
    assert Canvas().sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert Canvas(ascii_only=True).sparkline([0, 7, None, 7], 8) == "_# #"
    assert Canvas().sparkline([7, 0, 7, 0], 2) == "▁▁"  # means
    assert Canvas().sparkline([], 8) == ""


def test_a_chart_fills_rows_from_below() -> None:
    assert Canvas().chart([0, 5, 15], 3, 2) == ["  █", "▁▆█"]
    assert Canvas().chart([0, 10], 2, 1, (0.0, 20.0)) == ["▁▅"]
    assert Canvas().chart([-5, 50], 2, 1, (0.0, 20.0)) == ["▁█"]


@given(CURVES, st.integers(1, 80), st.integers(1, 5))
def test_charts_of_any_values_fit(values: list[float | None], width: int, height: int) -> None:
    rows = Canvas().chart(values, width, height)
    assert [len(row) for row in rows] == [min(width, len(values))] * height


@given(CURVES, st.integers(1, 80))
def test_means_lie_between_their_values(values: list[float | None], width: int) -> None:
    found = resampled(values, width)
    known = [each for each in values if each is not None]
    assert len(found) == min(width, len(values))
    for each in found:  # a mean is rounded
        assert each is None or min(known) <= each <= max(known) or abs(each) > 1e290 or pytest.approx(each) in known


def test_bars() -> None:
    canvas = Canvas(ascii_only=True)
    assert [canvas.bar(each, 4) for each in (-1.0, 0.0, 0.5, 1.0, 9.0)] == ["", "", "##", "####", "####"]
    assert canvas.signed_bar(0.5, 9).plain == "    |##  "
    assert canvas.signed_bar(-1.0, 9).plain == "####|    "


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(None), "-"), (number(0.123456), "0.1235"), (count(1234567), "1,234,567"), (count(None), "-"),
        (size(None), "-"), (size(12), "12 B"), (size(12_345), "12.3 kB"), (size(3_000_000_000), "3.0 GB"),
        (age(0, 59_999), "59s"), (age(0, 7_200_000), "2h"), (age(0, 200_000_000), "2d"), (age(5, 0), "0s"),
        (age(None, 5), "-"), (words(None), "-"), (words(["a", "b"]), "a, b"), (words("a\x1b[2J\n"), "a\\x1b[2J\\n"),
        (gain(None).plain, "-"), (gain(0.5).plain, "+0.500"), (gain(-0.5).style, "red"), (gain(0.0).style, ""),
        (action({"type": "load_kernel", "layer_id": "a", "blueprint": "b"}), "load b at a"), (action({}), "-"),
        (action({"type": "no_op", "layer_id": None, "blueprint": None}), "no_op"),
    ],
)  # fmt: skip
def test_values(shown: Any, expected: str) -> None:
    assert shown == expected
