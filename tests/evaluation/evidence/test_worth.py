import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tamiyo.evaluation.evidence import page
from tamiyo.evaluation.evidence.worth import (
    PREDICTORS,
    REPETITIONS,
    _inputs,
    against_mean,
    measure,
    merged,
    predictions,
    repeatability,
    with_ceiling,
)
from tamiyo.evaluation.lab.judge import agreement, column
from tamiyo.evaluation.lab.suites import judging_jobs, worth_jobs
from tamiyo.evaluation.lab.traffic import Job, generate
from tests.evaluation.evidence.rows import decision_rows


def noisy_rows(count: int = 1200, noise: float = 1.0):
    """Decisions with a standard normal expected worth, each measurement with a noise of its own; the gain is known."""
    rng = np.random.default_rng(1)
    rows = []
    for row in decision_rows(count):
        expected = float(rng.normal())
        one, two, three = (expected + noise * float(each) for each in rng.normal(size=3))
        own = {"gain": expected + row["cost"], "true_worth": one, "reordered_worth": two, "redrawn_worth": three}
        rows.append({**row, **own})
    return rows


def test_who_knows_the_expected_worth_reaches_the_ceiling_and_no_more() -> None:
    rows = noisy_rows()
    found = repeatability(rows)["known"]["reordered"]
    assert found["n"] == 900
    assert found["pearson"] == pytest.approx(0.5, abs=0.06)
    assert found["ceiling"] == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert found["ceiling_95"][0] < found["ceiling"] < found["ceiling_95"][1]
    reached = agreement(column(rows, "gain") - column(rows, "cost"), column(rows, "true_worth"))["pearson"]
    assert reached == pytest.approx(found["ceiling"], abs=0.03)


def test_the_mean_of_the_measurements_is_a_cleaner_truth() -> None:
    found = against_mean(noisy_rows(), "gain")
    assert found["n"] == 1200
    assert found["pearson"] == pytest.approx(math.sqrt(1 / (1 + 1 / 3)), abs=0.02)


def test_what_was_measured_once_is_in_no_mean() -> None:
    assert against_mean(decision_rows(), "gain")["n"] == 20
    once = [{**row, "reordered_worth": math.nan, "redrawn_worth": math.nan} for row in decision_rows()]
    assert against_mean(once, "gain") == {"n": 0}
    assert repeatability(once)["known"]["reordered"] == {"n": 0}


def test_what_repeats_the_wrong_way_has_a_ceiling_of_0() -> None:
    values = np.arange(10.0)
    found = with_ceiling(values, -values)
    assert found["pearson"] == pytest.approx(-1)
    assert (found["ceiling"], found["ceiling_95"]) == (0.0, [0.0, 0.0])


def test_measurements_take_their_place_in_the_committed_rows() -> None:
    first, second = decision_rows()[:2]
    other = {**first, "policy": "random:0.2"}
    committed = [
        {name: value for name, value in row.items() if name not in REPETITIONS.values()}
        for row in (first, other, second)
    ]
    key = (first["policy"], first["decision_id"])
    found = merged(committed, {key: {"reordered_worth": 0.25}, ("pump", second["decision_id"]): {"true_worth": 9.0}})
    assert [row["reordered_worth"] for row in found] == pytest.approx([0.25, math.nan, math.nan], nan_ok=True)
    assert [row["true_worth"] for row in found] == [row["true_worth"] for row in committed]
    assert math.isnan(found[0]["redrawn_worth"])


def test_measurements_are_read_off_the_runs(tmp_path: Path) -> None:
    job = Job("digits", "at_once", 3, alone=0.0, under_policy=1.0, reordered=1.0, steps=300)
    generate([job], tmp_path, 1, lambda job, error: None)
    found = measure(tmp_path, [job, Job("digits", "never", 0)])
    assert {policy for policy, _ in found} == {"at_once"}
    known, late = found.values()
    assert set(known) == {"true_worth", "reordered_worth", "hindsight_worth"}
    assert set(late) <= set(known)


def test_worth_is_measured_again_in_runs_that_are_judged() -> None:
    judged = {(job.task, job.policy, job.seed): job for job in judging_jobs()}
    for job in worth_jobs():
        assert replace(judged[job.task, job.policy, job.seed], alone=0.0, repeated=0.0) == job
        assert 0 < job.redrawn <= job.reordered <= job.under_policy or job.redrawn == 0
    assert {"charconv", "mixer", "digits"} <= {job.task for job in worth_jobs()}


def test_worth_is_predicted_on_tasks_that_were_not_fitted_to() -> None:
    rows = [{**row, "task": ("digits", "mnist1d", "mnist5k", "mixer")[i % 4]} for i, row in enumerate(noisy_rows())]
    found = predictions(rows)
    assert set(found) == set(PREDICTORS)
    exact = found["estimated gain"]  # the expected worth itself
    assert (exact["known"]["n"], exact["held_out"]["n"]) == (900, 300)
    assert exact["known"]["pearson"] == pytest.approx(math.sqrt(0.75), abs=0.03)
    assert exact["held_out"]["pearson"] == pytest.approx(math.sqrt(0.75), abs=0.06)
    assert abs(found["true gain"]["held_out"]["pearson"]) < 0.2  # unrelated here
    assert "| estimated gain | 0.8" in "\n".join(page._predictions(found))
    assert predictions(decision_rows()) == {}  # one known task: nothing to fit to


def test_what_came_later_is_counted_within_the_run() -> None:
    first, second = decision_rows()[:2]
    later = {**first, "step": 300, "gain": 0.5, "cost": 0.1}
    found = _inputs([later, first, second])
    assert found["estimated_later"] == pytest.approx([0.0, 0.4, 0.0])
    assert found["later"] == pytest.approx([0, 1, 0])


def test_tasks_are_kept_apart() -> None:
    found = repeatability(decision_rows())
    assert (found["known"]["reordered"]["n"], found["held_out"]["reordered"]["n"]) == (15, 5)
    assert found["by_task"]["digits"] == found["known"]
    assert found["by_task"]["mixer"] == found["held_out"]
    assert found["known"]["hindsight"]["ceiling"] == 0.0
    assert json.loads(json.dumps(found)) == found


def test_the_page_shows_the_ceiling() -> None:
    text = "\n".join(page._ceilings(repeatability(noisy_rows())))
    assert "| another order of the data | known tasks | 900 | 0.5" in text
    assert "| only the run without it, another order | held-out tasks | 5 | " in text
    assert re.search(r"digits 0\.\d\d \(900\), mixer 0\.\d\d \(300\)\.$", text)
    nothing = repeatability([{**row, "reordered_worth": math.nan} for row in decision_rows()])
    assert "By task, r on another order of the data, with n: none." in "\n".join(page._ceilings(nothing))
