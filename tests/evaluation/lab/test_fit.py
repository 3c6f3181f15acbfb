import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from tamiyo.evaluation.lab.fit import COVERAGE, TrainingCase, fit, to_forest
from tamiyo.streams.stages.rewards.fitted import GAIN, NEAR


def sample(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of four values, some unknown, and a target with noise that grows with the last of them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, 4))
    target = np.where(values[:, 0] > 0, values[:, 1], -0.5) + 0.05 * np.abs(values[:, 3]) * rng.normal(size=rows)
    values[rng.random((rows, 4)) < 0.1] = np.nan
    return values, target


def cases(rows: int, seed: int) -> list[TrainingCase]:
    values, target = sample(rows, seed)
    return [
        TrainingCase(
            "even" if index % 2 else "odd",
            f"run-{index // 4}",
            dict(zip("abcd", row, strict=True)) | {"never_known": np.nan},
            {GAIN: value, NEAR: value / 2} if index % 3 else {GAIN: value},
        )
        for index, (row, value) in enumerate(zip(values, target.tolist(), strict=True))
    ]


def test_the_arrays_compute_what_the_library_computes() -> None:
    values, target = sample(600, seed=0)
    model = HistGradientBoostingRegressor(max_iter=40, max_leaf_nodes=9, random_state=0).fit(values, target)
    forest = to_forest(model)
    others, _ = sample(200, seed=1)
    assert [forest.predict(row) for row in others] == pytest.approx(model.predict(others).tolist(), abs=1e-9)


def test_a_fitted_estimator_predicts_other_cases_within_its_interval() -> None:
    estimator = fit(cases(1600, seed=0), "v", {"runs": 400})
    assert estimator.names == ("a", "b", "c", "d")
    others = cases(600, seed=1)
    found = [estimator.estimate(case.evidence) for case in others]
    truth = np.array([case.targets[GAIN] for case in others])
    values = np.array([each.value for each in found])
    assert np.corrcoef(values, truth)[0, 1] > 0.9
    covered = np.mean(np.abs(values - truth) <= [each.half_width for each in found])
    assert COVERAGE - 0.05 <= covered <= COVERAGE + 0.06  # the fitted whole errs less than the folds it was scaled by
    assert np.corrcoef([each.near for each in found], truth)[0, 1] > 0.9
