import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from tamiyo.schemas.errors import ConfigurationError, PolicyError
from tamiyo.streams.settings import RewardSettings
from tamiyo.streams.stages.rewards.fitted import GAIN, NEAR, SMALLEST_WIDTH, Fitted, FittedEstimator, load_fitted
from tamiyo.streams.stages.rewards.stage import RewardsStage
from tests.streams.stages.rewards.test_forest import FOREST

NAMES = ("fall", "twin")
ERROR = replace(FOREST, value=FOREST.value * 0, base=0.1)
MODELS = {GAIN: Fitted(FOREST, ERROR, 2.0), NEAR: Fitted(replace(FOREST, base=-0.5), ERROR, 1.0)}
ESTIMATOR = FittedEstimator("fitted-1", NAMES, MODELS, {"runs": 3})


def test_an_estimate_has_the_models_value_and_interval() -> None:
    found = ESTIMATOR.estimate({"fall": 1.0})
    assert (found.value, found.near) == (11.5, pytest.approx(-0.5 + 10 + 1))
    assert found.half_width == pytest.approx(0.2)
    assert found.confidence == pytest.approx(1 / (1 + 0.2 / 0.3))


def test_a_predicted_error_of_nothing_leaves_a_smallest_interval() -> None:
    sure = FittedEstimator("x", NAMES, {**MODELS, GAIN: Fitted(FOREST, replace(ERROR, base=-1.0), 2.0)}, {})
    assert sure.estimate({"fall": 1.0}).half_width == pytest.approx(2 * SMALLEST_WIDTH)


def test_what_comes_after_the_compute_that_counts_gains_nothing() -> None:
    found = ESTIMATOR.estimate({"fall": 1.0, "compute_left": -0.01})
    assert (found.value, found.half_width) == (0.0, SMALLEST_WIDTH)
    assert ESTIMATOR.estimate({"fall": 1.0, "compute_left": 0.01}).value == 11.5


def test_what_a_shadow_twin_measured_replaces_the_near_effect_and_is_evidence_for_the_gain() -> None:
    found = ESTIMATOR.estimate({"fall": 1.0, "twin": 0.25})
    assert found.near == 0.25
    assert found.value == 0.5 + 10 + 2


def test_evidence_that_this_release_does_not_compute_counts_as_unknown() -> None:
    assert ESTIMATOR.estimate({"other": 3.0}) == ESTIMATOR.estimate({"fall": math.nan, "twin": math.nan})


def test_a_saved_estimator_is_the_same() -> None:
    again = FittedEstimator.load(ESTIMATOR.save())
    assert (again.version, again.names, again.about) == ("fitted-1", NAMES, {"runs": 3})
    for values in ({}, {"fall": 2.0}, {"fall": 0.0, "twin": 1.0}):
        assert again.estimate(values) == ESTIMATOR.estimate(values)


def damaged(tensors: dict[str, np.ndarray], header: object) -> bytes:
    return save_tensors(tensors, metadata={"tamiyo": json.dumps(header)})


HEADER = {"version": "v", "names": list(NAMES), "about": {}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an estimator",
        b"\xff" * 200,
        ESTIMATOR.save()[:-9],
        save_tensors(load_tensors(ESTIMATOR.save())),
        damaged({}, HEADER),
        damaged(load_tensors(ESTIMATOR.save()), {**HEADER, "names": ["fall"]}),
        damaged(load_tensors(ESTIMATOR.save()), {**HEADER, "names": 3}),
        damaged(load_tensors(ESTIMATOR.save()), [1]),
        damaged({**load_tensors(ESTIMATOR.save()), "gain.scale": np.array([-1.0])}, HEADER),
        damaged({**load_tensors(ESTIMATOR.save()), "gain.scale": np.array([np.nan])}, HEADER),
    ],
)
def test_a_file_that_is_no_estimator_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyError, match="estimator"):
        FittedEstimator.load(data)


def test_an_estimator_is_read_from_a_store(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(ESTIMATOR.save())
    assert load_fitted(f"file://{tmp_path}/own.safetensors").version == "fitted-1"
    with pytest.raises(PolicyError, match=r"cannot be read"):
        load_fitted(f"file://{tmp_path}/absent.safetensors")
    with pytest.raises(PolicyError, match=r"cannot be read"):
        load_fitted("nosuchscheme://x")


def test_the_package_ships_an_estimator() -> None:
    shipped = load_fitted("builtin")
    assert shipped.version
    assert math.isfinite(shipped.estimate({}).value)


@pytest.mark.parametrize("name", ["file:///nosuchfolder/x.safetensors", "nosuchscheme://x", "", "\0"])
def test_a_worker_whose_estimator_cannot_be_read_does_not_start(name: str) -> None:
    with pytest.raises(ConfigurationError, match="TAMIYO_REWARD_ESTIMATOR"):
        RewardsStage.check(RewardSettings(estimator=name))


@pytest.mark.parametrize("name", ["builtin", "rule"])
def test_the_shipped_estimators_are_usable(name: str) -> None:
    RewardsStage.check(RewardSettings(estimator=name))
