"""Estimates on a plant whose truth is known, and no verdict without support."""

import numpy as np
import pytest
from sklearn.dummy import DummyRegressor

from tamiyo.evaluation.offline.direct import cross_fitted
from tamiyo.evaluation.offline.estimators import Interval
from tamiyo.evaluation.offline.support import Thresholds, support
from tamiyo.evaluation.offline.verdict import Evaluation, Status, evaluate
from tamiyo.schemas.record import Tensor
from tests.evaluation.offline.plant import planted_log, true_value, under

NAMES = ("heuristic", "logged")


def covers(found: Interval, truth: float) -> bool:
    return found.low <= truth <= found.high


@pytest.fixture(scope="module")
def heuristic_against_logged() -> Evaluation:
    return evaluate(under(planted_log(), *NAMES), NAMES)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_intervals_cover_the_true_value(estimator: str, heuristic_against_logged: Evaluation) -> None:
    found = heuristic_against_logged
    assert found.policy.estimates is not None
    assert found.difference is not None
    assert covers(found.policy.estimates[estimator], true_value("heuristic"))
    assert covers(found.difference[estimator], true_value("heuristic") - true_value("logged"))


def test_a_better_policy_is_found(heuristic_against_logged: Evaluation) -> None:
    found = heuristic_against_logged
    assert found.status == Status.BETTER
    assert found.verdict.startswith("better: heuristic earns more than logged (+0.")
    assert (found.runs, found.decisions) == (40, 800)
    assert found.against.estimates is not None
    logged = found.against.estimates["ips"].value
    assert logged == pytest.approx(found.logged_reward, abs=1e-12)
    assert found.direct_r2 is not None
    assert 0.8 < found.direct_r2 < 1
    assert found.warnings == ()


def test_a_comparison_is_antisymmetric(heuristic_against_logged: Evaluation) -> None:
    found = evaluate(under(planted_log(), "logged", "heuristic"), ("logged", "heuristic"))
    assert found.status == Status.WORSE
    assert found.verdict.startswith("worse: logged earns less than heuristic (-0.")
    assert found.difference is not None
    assert heuristic_against_logged.difference is not None
    for name, each in found.difference.items():
        assert each.value == pytest.approx(-heuristic_against_logged.difference[name].value, abs=1e-12)


def test_a_policy_is_not_better_than_itself() -> None:
    found = evaluate(under(planted_log(), "heuristic", "heuristic"), ("one", "other"))
    assert found.status == Status.NO_DIFFERENCE
    assert found.verdict.startswith("no difference shown between one and other (+0.0000 [+0.0000, +0.0000]")


def test_a_wrong_model_biases_the_direct_method_but_not_the_doubly_robust_one() -> None:
    found = evaluate(under(planted_log(), *NAMES), NAMES, make_model=DummyRegressor)
    assert found.policy.estimates is not None
    assert found.policy.estimates["dm"].high < true_value("heuristic") - 0.03
    assert covers(found.policy.estimates["dr"], true_value("heuristic"))


def test_a_good_model_makes_the_doubly_robust_interval_narrower(heuristic_against_logged: Evaluation) -> None:
    estimates = heuristic_against_logged.policy.estimates
    assert estimates is not None
    assert estimates["dr"].high - estimates["dr"].low < 0.8 * (estimates["ips"].high - estimates["ips"].low)


def test_no_run_predicts_itself() -> None:
    class Memory:
        """Remembers every row that it is fitted to."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> "Memory":
            self.rows = {row.tobytes(): reward for row, reward in zip(x, y, strict=True)}
            return self

        def predict(self, x: np.ndarray) -> np.ndarray:
            return np.array([self.rows.get(row.tobytes(), -9.0) for row in x])

    decisions = under(planted_log(), "heuristic")
    assert set(cross_fitted(decisions, Memory).predicted) == {-9.0}
    assert cross_fitted(decisions[:40], Memory, folds=5).direct[0] == pytest.approx([-9.0] * 40)  # two runs, two folds


def test_the_direct_value_is_the_mean_prediction_under_the_policy() -> None:
    class FirstColumns:
        """Predicts the number of layers for every adaptation, and 0 for no_op."""

        def fit(self, x: np.ndarray, y: np.ndarray) -> None: ...

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x[:, -5:].sum(axis=1)  # the kinds' indicators

    decisions = under(planted_log(), "heuristic", "never")
    found = cross_fitted(decisions, FirstColumns)
    expected = [each.targets[0][each.actions > 0].sum() for each in decisions]
    assert found.direct[0] == pytest.approx(expected)
    assert not found.direct[1].any()
    assert found.predicted.tolist() == [float(each.actions[each.logged] > 0) for each in decisions]


# Support


def test_the_support_of_the_logged_policy_is_whole() -> None:
    found = support(under(planted_log(), "logged"), 0, 50.0)
    assert (found.effective_sample_size, found.effective_runs) == (800, 40)
    assert (found.covered, found.largest_weight, found.above_limit) == (1, 1, 0)
    assert found.mean_weight == Interval(1, 1, 1)


def test_without_support_there_is_no_claim() -> None:
    log = planted_log(40, 20, uniform=0.02)  # no_op, which the heuristic avoids, is hardly ever logged
    found = evaluate(under(log, "never", "logged"), ("never", "logged"))
    size = found.policy.support.effective_sample_size
    assert 0 < size < 50
    assert found.status == Status.TOO_LITTLE_SUPPORT
    assert found.verdict.startswith(f"too little support: never: effective sample size {int(size)} of at least 50")
    assert (found.difference, found.policy.estimates, found.against.estimates) == (None, None, None)
    assert not {"better", "worse", "difference"} & set(found.verdict.replace(":", " ").split())


def test_the_other_policy_needs_support_too() -> None:
    log = planted_log(40, 20, uniform=0.02)
    found = evaluate(under(log, "logged", "never"), ("logged", "never"))
    assert found.verdict.startswith("too little support: never: effective")


def test_few_runs_are_too_little_however_many_decisions_they_have() -> None:
    found = evaluate(under(planted_log(19, 40), *NAMES), NAMES)
    assert found.policy.support.effective_sample_size > 50
    assert "logged: 19 effective runs of at least 20" in found.verdict
    assert found.status == Status.TOO_LITTLE_SUPPORT


def test_one_run_has_no_interval_and_no_claim() -> None:
    found = evaluate(under(planted_log()[:20], *NAMES), NAMES)
    assert found.policy.support.mean_weight is None
    assert found.status == Status.TOO_LITTLE_SUPPORT


def test_one_run_that_outweighs_all_others_counts_as_one() -> None:
    log = [
        *planted_log(30, 20),
        *(each.model_copy(update={"run_id": "long"}) for each in planted_log() for _ in range(5)),
    ]
    found = support(under(log, "logged"), 0, 50.0)
    assert found.effective_runs < 2
    assert found.effective_sample_size == len(log)


def test_probability_on_actions_that_were_hardly_tried_is_not_covered() -> None:
    """Equal weights would hide it: where a policy prefers what was never logged, all logged weights are small."""
    avoided = []
    for each in planted_log():
        probabilities = each.probabilities.numpy().copy()
        probabilities[0], moved = 1e-4, probabilities[0] - 1e-4
        probabilities[each.action_index] += moved
        if each.action_index > 0:
            avoided.append(each.model_copy(update={"probabilities": Tensor.of(probabilities)}))
    decisions = under(avoided, "never")
    found = support(decisions, 0, 50.0)
    assert found.covered == 0
    assert found.effective_sample_size == 0
    assert "0 % of the probability on covered actions of at least 90 %" in found.shortfalls(Thresholds())


def test_the_limit_decides_what_is_covered() -> None:
    decisions = under(planted_log(), "never")
    weight = max(each.weight(0) for each in decisions)
    assert support(decisions, 0, weight).covered == 1
    below = support(decisions, 0, 0.9 * weight)
    assert below.covered < 1
    assert below.above_limit > 0
    assert below.largest_weight == weight


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        (Thresholds(effective_sample_size=1e6), "heuristic: effective sample size 481 of at least 1e+06"),
        (Thresholds(effective_runs=39), "heuristic: 38 effective runs of at least 39"),
        (Thresholds(weight_limit=1.5), "% of the probability on covered actions of at least 90 %"),
    ],
)
def test_thresholds_are_adjustable(thresholds: Thresholds, words: str) -> None:
    found = evaluate(under(planted_log(), *NAMES), NAMES, thresholds)
    assert found.status == Status.TOO_LITTLE_SUPPORT
    assert words in found.verdict


def test_wrong_propensities_are_warned_of() -> None:
    wrong = []
    for each in planted_log():
        legal = np.frombuffer(each.mask, np.uint8)
        wrong.append(each.model_copy(update={"probabilities": Tensor.of(legal / legal.sum())}))
    found = evaluate(under(wrong, *NAMES), NAMES)
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("heuristic: the mean weight is ")
