"""GroMo grows the task's own perceptron within the budget, and its absence is explained."""

import sys
from dataclasses import replace

import pytest

from tamiyo.evaluation.lab.baselines import baseline
from tamiyo.evaluation.lab.compare import pairs
from tamiyo.evaluation.lab.gromo_growth import train_gromo
from tamiyo.evaluation.lab.run import RunSpec
from tamiyo.evaluation.lab.statics import trained_otherwise
from tamiyo.evaluation.lab.traffic import Job, Traffic, make
from tamiyo.schemas.errors import ConfigurationError
from tests.evaluation.lab.support import SPEC, finished


def test_without_gromo_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gromo", None)
    for use in (lambda: trained_otherwise("gromo"), lambda: train_gromo(SPEC)):
        with pytest.raises(ConfigurationError, match=r"pip install gromo==0\.1\.0"):
            use()
    with pytest.raises(ConfigurationError, match="gromo trains a network of its own"):
        baseline("gromo")


def test_it_grows_within_the_budget_and_pays_for_what_it_grows() -> None:
    pytest.importorskip("gromo")
    never, found = finished("never")[0], make(Job("digits", "gromo", SPEC.seed, steps=SPEC.steps)).result
    curve = found.curve
    assert found.parameters == never.parameters == 415
    assert found.budget == never.budget
    assert found.compute == pytest.approx(never.compute)
    assert curve.step == never.curve.step
    assert curve.kernel_parameters == sorted(curve.kernel_parameters)
    assert 0 < curve.kernel_parameters[-1] <= found.budget
    # The first validation comes before anything has grown: the same network, data and order.
    assert curve.test[0] == pytest.approx(never.curve.test[0], rel=1e-5)
    assert curve.compute[0] == pytest.approx(never.curve.compute[0])
    assert curve.compute[-1] > never.curve.compute[-1] * 1.2, "the passes for its statistics are not paid for"
    (pair,) = pairs([Traffic(Job("digits", "never", 3), never), Traffic(Job("digits", "gromo", 3), found)])
    assert pair.equal_steps > 0
    assert train_gromo(SPEC) == found


def test_only_perceptrons_of_one_width_are_grown() -> None:
    pytest.importorskip("gromo")
    assert train_gromo(RunSpec("mnist1d_flat", 1, steps=150)).curve.kernel_parameters[-1] > 0
    for task in ("mnist1d", "mixer", "digits_wide"):
        with pytest.raises(ConfigurationError, match=f"task {task} is no such"):
            train_gromo(replace(SPEC, task=task))
