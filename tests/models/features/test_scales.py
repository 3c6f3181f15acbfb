import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tamiyo.models.features.scales import LIMIT, bounded, known_or, log10_above, signed_log

NAN = float("nan")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(width=64) | st.just(1e308) | st.just(-1e308), max_size=20))
def test_bounded_is_finite_and_keeps_what_is_inside(values):
    found = bounded(values)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (np.abs(found) <= LIMIT).all()
    for value, kept in zip(values, found, strict=True):
        expected = 0.0 if math.isnan(value) else max(-LIMIT, min(LIMIT, value))
        assert kept == np.float32(expected)


def test_logarithms_of_small_and_negative_values():
    np.testing.assert_allclose(log10_above([-5.0, 0.0, 9.0, NAN], 1.0), [0.0, 0.0, 1.0, NAN])
    assert log10_above(0.0, 1e-6) == pytest.approx(-6.0)
    np.testing.assert_allclose(signed_log([1 - math.e, 0.0, math.e - 1]), [-1.0, 0.0, 1.0])


def test_a_default_stands_in_for_what_was_not_measured():
    np.testing.assert_array_equal(known_or(np.array([NAN, 0.0, 2.0]), 1.0), [1.0, 0.0, 2.0])
