import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models.features.series import Series, newest, relative_slope, slope, streak
from tests.support.factories import make_window

NAN = float("nan")


def test_values_follow_the_given_order_of_layers():
    window = make_window(layers=["b", "a"], health=[0.2, 0.1])
    np.testing.assert_array_equal(Series([window], ["a", "b", "c"]).window(-1, "health"), [0.1, 0.2, NAN])
    np.testing.assert_array_equal(Series([window], ["a"]).window(-1, "no_such_metric"), [NAN])


def test_newest_goes_back_until_it_finds_a_value():
    windows = [
        make_window(0, layers=3, growth_score=[1.0, 2.0, None]),
        make_window(1, layers=3, growth_score=[3.0, None, None]),
        make_window(2, layers=3, growth_score=[None, None, None]),
    ]
    series = Series(windows, ["layer.0", "layer.1", "layer.2"])
    np.testing.assert_array_equal(series.newest("growth_score"), [3.0, 2.0, NAN])
    assert series.history("growth_score").shape == (3, 3)


def test_model_metrics():
    windows = [make_window(0, model={"train_loss": 2.0}), make_window(1, model={"train_loss": None})]
    found = Series(windows, []).model("train_loss")
    np.testing.assert_array_equal(found, [2.0, NAN])
    assert newest(found) == 2.0
    assert np.isnan(newest(np.array([NAN])))


def test_slope_of_a_line_is_its_rise_a_window():
    values = np.array([[1.0, 5.0, NAN], [3.0, NAN, NAN], [5.0, 1.0, 7.0]])
    np.testing.assert_allclose(slope(values), [2.0, -2.0, NAN])
    np.testing.assert_allclose(relative_slope(values), [2.0 / 3.0, -2.0 / 3.0, NAN])
    assert relative_slope(np.zeros(3)) == 0.0


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_slope_agrees_with_numpy(values):
    assert float(slope(np.array(values))) == pytest.approx(np.polyfit(range(len(values)), values, 1)[0], abs=1e-6)


def test_the_largest_floats_do_not_become_nan():
    assert not np.isnan(slope(np.array([1.7e308, -1.7e308])))
    assert relative_slope(np.array([1.7e308, -1.7e308])) == pytest.approx(-2.0)


def test_a_streak_skips_what_was_not_measured():
    values = np.array([[1.0, -1.0], [-1.0, -1.0], [NAN, 1.0], [-2.0, NAN]])
    np.testing.assert_array_equal(streak(values, values <= 0), [2, 0])
    np.testing.assert_array_equal(streak(values, values > 0), [0, 1])
