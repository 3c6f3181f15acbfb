import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models.conformal import KEPT, LEAST, MULTIPLIERS, NOISE_FLOOR, Calibration


def test_an_untrained_ensembles_uncertainty():
    assert Calibration().half_width([0.25, 0.0, 5.0]).tolist() == pytest.approx([0.35, 0.1, 1.0])
    assert Calibration(multiplier=2.0).half_width(0.1) == pytest.approx(0.4)


def test_an_untried_action_stays_below_the_veto_however_noisy_rewards_are():
    widest = Calibration(multiplier=MULTIPLIERS[1]).half_width(0.25)
    assert widest < 0.8


def test_a_few_rewards_change_nothing_yet():
    found = Calibration().update([0.0] * (LEAST - 1), [0.0] * (LEAST - 1), [1.0] * (LEAST - 1))
    assert found.multiplier == 1.0
    assert len(found.scores) == LEAST - 1


def test_the_quantile_by_hand():
    # Twenty scores .1, .2, ... 2.0: errors of spread 0, so score = error / NOISE_FLOOR.
    scores = np.arange(1, 21) / 10
    found = Calibration(miss_rate=0.1, multiplier=100.0).update(np.zeros(20), np.zeros(20), scores * NOISE_FLOOR)
    # No error beyond the multiplier: the miss rate rises by .02 x .1 a reward, to .14; rank ceil(21 x .86) = 19.
    assert found.miss_rate == pytest.approx(0.14)
    assert found.multiplier == pytest.approx(1.9)


@pytest.mark.parametrize("noise", [0.05, 0.12])
def test_coverage_comes_to_what_was_promised(noise):
    random = np.random.default_rng(0)
    calibration, covered = Calibration(), []
    for _ in range(60):
        predicted, spread = random.uniform(-0.5, 0.5, 20), random.uniform(0.0, 0.05, 20)
        reward = predicted + random.normal(0, noise, 20)
        covered.append(np.abs(reward - predicted) <= calibration.half_width(spread))
        calibration = calibration.update(predicted, spread, reward)
    assert np.mean(covered[20:]) == pytest.approx(0.9, abs=0.03)


def test_it_is_pure_and_survives_json():
    before = Calibration()
    after = before.update(np.zeros(30), np.full(30, 0.1), np.linspace(-1, 1, 30))
    assert before == Calibration()
    assert Calibration.model_validate_json(after.model_dump_json()) == after


@given(st.lists(st.tuples(st.floats(), st.floats(0, 10), st.floats(-1, 1)), max_size=60))
def test_anything_keeps_it_in_bounds(rows):
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    with np.errstate(all="ignore"):
        found = Calibration().update(*columns)
    assert MULTIPLIERS[0] <= found.multiplier <= MULTIPLIERS[1]
    assert 0.01 <= found.miss_rate <= 0.5
    assert len(found.scores) <= KEPT
    assert ((found.half_width([0.0, 0.3, 1e9]) >= 0) & (found.half_width([0.0, 0.3, 1e9]) <= 1)).all()
