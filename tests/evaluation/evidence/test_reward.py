import json
from pathlib import Path

import pytest

from tamiyo.evaluation.evidence import reward
from tests.evaluation.evidence.rows import decision_rows, run_rows


def test_the_report_has_what_it_promises() -> None:
    found = reward.report(decision_rows(), run_rows(), "fitted-1")
    assert json.loads(json.dumps(found)) == found
    assert found["n"] == 40
    assert found["pearson"] > 0.9
    assert found["coverage"] == pytest.approx(36 / 40)  # every tenth interval is too narrow
    assert found["ceiling"] == pytest.approx(1.0)
    assert found["rule_pearson"] == pytest.approx(-1.0)
    digits, mixer = found["by_task"]["digits"], found["by_task"]["mixer"]
    assert (digits["n"], digits["held_out"], mixer["n"], mixer["held_out"]) == (30, False, 10, True)
    assert digits["mean_reward"] - digits["mean_gain"] == pytest.approx(0.05 / 3)  # twenty miss by +.05, ten by -.05
    assert set(digits) >= {"n", "pearson", "mean_reward", "mean_gain", "held_out"}


def test_costs_are_included_in_the_reward_and_in_the_truth() -> None:
    dearer = [{**row, "cost": row["cost"] + 1.0} for row in decision_rows()]
    before, after = (reward.report(rows, [], "x") for rows in (decision_rows(), dearer))
    assert after["mean_true"] == pytest.approx(before["mean_true"] - 1)
    assert after["mean_estimated"] == pytest.approx(before["mean_estimated"] - 1)


def test_a_component_that_never_changes_has_no_correlation() -> None:
    found = reward.report(decision_rows(), [], "x")["components"]
    assert found["digits"] == {"accuracy_improvement": pytest.approx(1.0)}


def test_sums_are_judged_by_policy() -> None:
    found = reward.sums(run_rows())
    assert found["heuristic"]["coverage"] == 1.0
    assert found["pump"]["coverage"] == 0.0
    assert found["pump"]["mean_difference"] == pytest.approx(0.3)


def test_without_a_twin_a_row_counts_nowhere() -> None:
    table = [{**row, "true_gain": float("nan")} for row in decision_rows()]
    assert reward.report(table, [], "x")["n"] == 0


def test_rows_survive_the_file(tmp_path: Path) -> None:
    reward.save(decision_rows(), tmp_path / "rows.parquet")
    again = reward.read(tmp_path / "rows.parquet")
    assert repr(again) == repr(decision_rows())
