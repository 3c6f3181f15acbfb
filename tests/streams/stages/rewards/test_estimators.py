"""The two estimators of a gain, with values computed by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.counterfactual import CounterfactualEstimator
from tamiyo.streams.stages.rewards.projection import ProjectionEstimator
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

EFFECTIVE_AT = 400.0
# Log losses about 0 without a trend, with a noise of 1.4826 x 0.1 a window.
BASELINE = [math.exp(0.1 if index in (0, 3, 5, 6) else -0.1) for index in range(8)]
MARGIN = 1.4826 * 0.1 / math.sqrt(8)


def adaptation(*, gated: bool = True, next_adaptation_at: float = math.inf) -> ExecutedAdaptation:
    return ExecutedAdaptation(EFFECTIVE_AT, "conv1", gated, 100, 1000, 0.2, next_adaptation_at)


def window(
    index: int,
    loss: float | None,
    contribution: dict[str, float] | None = None,
    *,
    train_loss: float | None = None,
) -> WindowSummary:
    start = 50.0 * index
    return WindowSummary(
        index, start, start + 50, 0, validation_loss=loss, train_loss=train_loss, contribution=contribution
    )


def projection(*, next_adaptation_at: float = math.inf, gated: bool = True) -> ProjectionEstimator:
    before = [window(index, loss, train_loss=2 * loss) for index, loss in enumerate(BASELINE)]
    executed = adaptation(gated=gated, next_adaptation_at=next_adaptation_at)
    return ProjectionEstimator(executed, before, CounterfactualEstimator(executed, before))


def projected(*windows: WindowSummary, next_adaptation_at: float = math.inf, gated: bool = True) -> float | None:
    gain = projection(next_adaptation_at=next_adaptation_at, gated=gated).gain(windows)
    return None if gain is None else gain.value


class TestProjection:
    def test_the_margin_is_subtracted_from_a_gain(self) -> None:
        assert projected(window(8, math.exp(-0.5))) == pytest.approx(0.5 - MARGIN)

    def test_a_gain_within_the_margin_is_not_credited(self) -> None:
        assert projected(window(8, math.exp(-MARGIN / 2))) == pytest.approx(0, abs=1e-12)

    def test_a_loss_is_charged_without_the_margin(self) -> None:
        assert projected(window(8, math.exp(0.5))) == pytest.approx(-0.5)

    @given(st.floats(-2, 2))
    def test_noise_never_earns_and_never_costs(self, gain: float) -> None:
        value = projected(window(8, math.exp(-gain)))
        assert value == pytest.approx(max(0.0, gain - MARGIN) if gain > 0 else gain, abs=1e-9)

    def test_the_gain_is_the_median_over_windows(self) -> None:
        losses = [math.exp(-0.5), math.exp(-0.7), 1e-6]
        assert projected(*(window(8 + n, loss) for n, loss in enumerate(losses))) == pytest.approx(0.7 - MARGIN)

    def test_the_noise_of_the_baseline_is_that_of_the_gain(self) -> None:
        gain = projection().gain([window(8, 0.5)])
        assert gain is not None
        assert gain.noise == pytest.approx(0.14826)

    def test_windows_without_a_validation_loss_are_measured_by_the_training_loss(self) -> None:
        # The training losses of the baseline are twice the validation losses.
        assert projected(window(8, None, train_loss=2 * math.exp(-0.5))) == pytest.approx(0.5 - MARGIN)
        assert projected(window(8, math.exp(-0.5), train_loss=9.0)) == pytest.approx(0.5 - MARGIN)
        assert projected(window(8, None)) is None
        assert projected(window(8, 0.0)) is None

    def test_after_the_next_adaptation_the_gain_is_shared_by_contribution(self) -> None:
        contribution = {"conv1": 0.1, "conv2": 0.3, "conv3": -5.0}
        shared = window(8, math.exp(-0.8), contribution)
        assert projected(shared) == pytest.approx(0.8 - MARGIN)
        assert projected(shared, next_adaptation_at=450) == pytest.approx(0.8 - MARGIN)
        assert projected(shared, next_adaptation_at=449) == pytest.approx(0.2 - MARGIN)
        assert projected(shared, next_adaptation_at=449, gated=False) is None
        assert projected(window(8, math.exp(-0.8)), next_adaptation_at=449) is None

    def test_without_a_baseline_the_gain_is_unknown(self) -> None:
        executed = adaptation()
        before = [window(index, 1.0) for index in range(2)]
        estimator = ProjectionEstimator(executed, before, CounterfactualEstimator(executed, before))
        assert estimator.gain([window(8, 0.5)]) is None


def counterfactual(*windows: WindowSummary, before: tuple[WindowSummary, ...] = (), gated: bool = True) -> float | None:
    gain = CounterfactualEstimator(adaptation(gated=gated), before).gain(windows)
    return None if gain is None else gain.value


class TestCounterfactual:
    def test_the_gain_is_the_log_ratio_of_the_losses_without_and_with_the_kernels(self) -> None:
        assert counterfactual(window(8, 0.5, {"conv1": 0.25})) == pytest.approx(math.log(0.75 / 0.5))
        assert counterfactual(window(8, 0.5, {"conv1": -0.2})) == pytest.approx(math.log(0.3 / 0.5))

    def test_the_gain_is_the_median_over_windows(self) -> None:
        windows = [window(8 + n, 0.5, {"conv1": added}) for n, added in enumerate((0.1, 0.5, 9.0))]
        assert counterfactual(*windows) == pytest.approx(math.log(2))

    def test_only_what_was_added_since_the_last_measurement_before_counts(self) -> None:
        before = (window(6, 0.5, {"conv1": 0.4}), window(7, 0.5, {"conv1": 0.1, "conv2": 3.0}))
        assert counterfactual(window(8, 0.5, {"conv1": 0.25}), before=before) == pytest.approx(math.log(0.65 / 0.5))

    def test_a_contribution_below_minus_the_loss_is_bounded(self) -> None:
        assert counterfactual(window(8, 0.5, {"conv1": -4.0})) == pytest.approx(-3 * math.log(1.25))

    def test_a_window_without_a_validation_loss_uses_the_median_of_the_others(self) -> None:
        missing = window(8, None, {"conv1": 0.5}, train_loss=9.0)
        assert counterfactual(missing, window(9, 0.5)) == pytest.approx(math.log(2))
        assert counterfactual(missing) == pytest.approx(math.log(9.5 / 9))

    def test_without_gates_or_contributions_the_gain_is_unknown(self) -> None:
        assert counterfactual(window(8, 0.5, {"conv1": 0.25}), gated=False) is None
        assert counterfactual(window(8, 0.5, {"conv2": 0.25})) is None
        assert counterfactual(window(8, 0.5)) is None
        assert counterfactual(window(8, None, {"conv1": 0.25})) is None

    def test_a_share_is_between_0_and_1(self) -> None:
        estimator = CounterfactualEstimator(adaptation(), (window(7, 0.5, {"conv2": 0.2}),))
        assert estimator.share(window(8, 0.5, {"conv1": 0.1, "conv2": 0.5})) == pytest.approx(0.25)
        assert estimator.share(window(8, 0.5, {"conv1": -0.1, "conv2": 0.5})) == 0
        assert estimator.share(window(8, 0.5, {"conv1": -0.1})) == 0
        assert estimator.share(window(8, 0.5, {"conv2": 0.5})) is None
