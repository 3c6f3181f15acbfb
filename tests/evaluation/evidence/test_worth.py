import json
import math
import re

import numpy as np
import pytest

from tamiyo.evaluation.evidence import page
from tamiyo.evaluation.evidence.worth import against_mean, repeatability, with_ceiling
from tamiyo.evaluation.lab.judge import agreement, column
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
