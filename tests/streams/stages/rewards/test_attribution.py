"""Rewards of executed adaptations on loss curves like MNIST-1D's, and attempts to earn without improving."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.attribution import RewardEstimate, estimate_reward
from tamiyo.streams.stages.rewards.estimator import RuleEstimator
from tamiyo.streams.stages.rewards.evidence import Case
from tamiyo.streams.stages.rewards.projection import DAMPING
from tamiyo.streams.stages.rewards.spans import Span, make_spans
from tamiyo.streams.stages.rewards.window_summary import WindowSummary
from tests.support.factories import make_window

EFFECTIVE_AT = 800.0
SPANS = make_spans((100, 400, 1000, 2000))
ADAPTATION = ExecutedAdaptation(
    effective_at=EFFECTIVE_AT,
    layer_id="conv1",
    gated=True,
    parameters_added=1300,
    parameter_budget=6000,
    uncertainty=0.2,
)

Curve = Callable[[float], float | None]


def plateau(step: float) -> float:
    """A narrow network's held-out loss: from 2.3, flat at .905 from step 800 on."""
    return 0.905 + 1.4 * math.exp(-step / 60)


def grown(step: float) -> float:
    """The same where a kernel takes it down to .535 within some 200 steps."""
    return plateau(step) if step < EFFECTIVE_AT else 0.535 + 0.37 * math.exp(-(step - EFFECTIVE_AT) / 100)


def run(
    loss: Curve, contribution: Curve | None = None, *, steps: int = 2800, step_time_ms: Curve | None = None
) -> list[WindowSummary]:
    windows = []
    for index in range(steps // 50):
        middle = 50.0 * index + 25
        value = contribution(middle) if contribution and middle >= EFFECTIVE_AT else None
        windows.append(
            WindowSummary(
                offset=index,
                start=50.0 * index,
                end=50.0 * index + 50,
                time_ms=1000 * index,
                train_loss=loss(middle),
                validation_loss=loss(middle),
                step_time_ms=step_time_ms(middle) if step_time_ms else 2.0,
                contribution=None if value is None else {"conv1": value},
            )
        )
    return windows


def estimate(
    windows: list[WindowSummary], adaptation: ExecutedAdaptation = ADAPTATION, closed: int = 4
) -> RewardEstimate:
    """Estimate with the rule, which reads nothing of the decision, the graph and the outcome."""
    cases = [case(windows, adaptation, span) if i < closed else None for i, span in enumerate(SPANS)]
    return estimate_reward(cases, SPANS, RuleEstimator())


def case(windows: list[WindowSummary], adaptation: ExecutedAdaptation, span: Span) -> Case:
    boundary = adaptation.effective_at + span.end
    known = adaptation.next_adaptation_at if adaptation.next_adaptation_at < boundary else math.inf
    return Case(
        decision=cast(AdaptationDecision, None),
        graph=cast(ModelGraph, None),
        outcome=cast(AdaptationOutcome, None),
        adaptation=replace(adaptation, next_adaptation_at=known),
        windows=windows,
        later=[],
        span_start=adaptation.effective_at + span.start,
        now=boundary,
        ended=False,
        baseline_windows=12,
    )


def test_spans_are_the_specifications() -> None:
    assert [(span.name, span.weight) for span in SPANS] == [
        ("immediate", 0.3),
        ("short_term", 0.4),
        ("medium_term", 0.25),
        ("long_term", 0.05),
    ]
    assert [(span.start, span.end) for span in SPANS] == [(0, 100), (100, 400), (400, 1000), (1000, 2000)]


def test_every_moment_after_an_adaptation_is_in_one_span() -> None:
    found = [[span.name for span in SPANS if span.contains(elapsed)] for elapsed in (-1, 0, 99, 100, 1999, 2000)]
    assert found == [[], ["immediate"], ["immediate"], ["short_term"], ["long_term"], []]


@pytest.mark.parametrize(("improvement", "success"), [(0.009, False), (0.011, True), (-0.011, False)])
def test_a_success_is_an_improvement_of_more_than_1_percent(improvement: float, success: bool) -> None:
    windows = run(lambda step: 0.9 if step < EFFECTIVE_AT else 0.9 * (1 - improvement))
    reward = estimate(windows, replace(ADAPTATION, gated=False))
    assert reward.improvement == pytest.approx(improvement)
    assert reward.success is success


def test_a_good_kernel_pays() -> None:
    reward = estimate(run(grown, lambda step: 0.9))
    assert reward.total > 0.3
    assert reward.success is True
    assert reward.improvement is not None
    assert reward.improvement > 0.2
    last = reward.spans[-1].components
    assert last[rc.ACCURACY] == pytest.approx(math.log(0.905 / 0.535) / math.log(1.25), abs=0.1)
    assert last[rc.MEMORY] == pytest.approx(-1300 / 6000)


def test_a_kernel_without_effect_costs() -> None:
    reward = estimate(run(plateau, lambda step: 0.0))
    assert reward.total < -0.05
    assert reward.success is False


def test_an_adaptation_without_effect_or_parameters_costs() -> None:
    adaptation = replace(ADAPTATION, gated=False, parameters_added=0, uncertainty=0.0)
    assert estimate(run(plateau), adaptation).total < -0.05


def test_drift_is_not_credited() -> None:
    def falling(step: float) -> float:
        # Exactly the damped trend of the 550 clock units before the adaptation.
        early = math.exp(-0.0005 * min(step, EFFECTIVE_AT))
        horizon = DAMPING * 550
        return early * math.exp(-0.0005 * horizon * -math.expm1(-max(0.0, step - EFFECTIVE_AT) / horizon))

    reward = estimate(run(falling))
    assert reward.total < 0
    assert reward.improvement == pytest.approx(0, abs=1e-3)
    assert reward.success is False


def test_a_kernel_that_the_network_merely_depends_on_does_not_pay() -> None:
    assert estimate(run(plateau, lambda step: 3.0)).total < 0


def test_a_coincidence_does_not_pay() -> None:
    assert estimate(run(grown, lambda step: 0.0)).total < 0


def test_noise_does_not_pay() -> None:
    def noisy(step: float) -> float:
        return plateau(step) * (1.03 if (step // 50) % 3 else 0.98)

    adaptation = replace(ADAPTATION, gated=False, parameters_added=0)
    assert estimate(run(noisy), adaptation).total < 0


def test_a_harmful_adaptation_costs_more_than_a_useless_one() -> None:
    def worse(step: float) -> float:
        return plateau(step) * (1.3 if step >= EFFECTIVE_AT else 1.0)

    assert estimate(run(worse, lambda step: -0.2)).total < estimate(run(plateau, lambda step: 0.0)).total - 0.3


def test_latency_costs() -> None:
    free = estimate(run(grown, lambda step: 0.9)).components
    slow = estimate(
        run(grown, lambda step: 0.9, step_time_ms=lambda step: 2.0 if step < EFFECTIVE_AT else 3.0)
    ).components
    assert slow[rc.SPEED] == 0  # half a millisecond a step is within the allowance
    assert slow[rc.COST] == pytest.approx(free[rc.COST] + 0.2 * 0.5)
    huge = estimate(
        run(grown, lambda step: 0.9, step_time_ms=lambda step: 200.0 if step < EFFECTIVE_AT else 300.0)
    ).components
    assert huge[rc.SPEED] == pytest.approx(-98.5 / 200 - 0.5)


def test_unseen_spans_are_unknown_and_the_weights_are_renormalised() -> None:
    windows = run(grown, lambda step: 0.9)
    reward = estimate(windows, closed=2)
    assert [span.seen for span in reward.spans] == [True, True, False, False]
    assert reward.spans[2].components == {}
    first, second = reward.spans[:2]
    expected = (0.3 * first.total + 0.4 * second.total) / 0.7
    assert reward.total == pytest.approx(math.tanh(expected))
    assert reward.confidence < 0.7
    assert estimate(windows).confidence > reward.confidence


def test_without_a_loss_the_reward_is_unknown() -> None:
    reward = estimate(run(lambda step: plateau(step) if step < EFFECTIVE_AT else None))
    assert reward.components == {}
    assert reward.improvement is None
    assert reward.success is None
    assert (reward.total, reward.confidence) == (0, 0)


def test_the_training_loss_replaces_a_missing_validation_loss() -> None:
    windows = [replace(window, validation_loss=None) for window in run(grown, lambda step: 0.9)]
    assert estimate(windows).total > 0.3


def test_a_noisy_baseline_lowers_confidence() -> None:
    def noisy(step: float) -> float:
        return grown(step) * (1.2 if (step // 50) % 2 else 1.0)

    assert estimate(run(noisy, lambda step: 0.9)).confidence < estimate(run(grown, lambda step: 0.9)).confidence - 0.2


def test_without_a_baseline_the_counterfactual_counts_with_half_the_confidence() -> None:
    adaptation = replace(ADAPTATION, effective_at=0.0)
    windows = [replace(window, contribution={"conv1": 0.3}) for window in run(plateau)]
    reward = estimate(windows, adaptation)
    assert reward.spans[3].components[rc.ACCURACY] == pytest.approx(math.log(1.205 / 0.905) / math.log(1.25), abs=0.01)
    assert reward.confidence == pytest.approx(0.5)


def test_only_what_was_added_to_a_layer_that_had_kernels_counts() -> None:
    before = [
        replace(w, contribution={"conv1": 0.5}) if w.end <= EFFECTIVE_AT else w for w in run(grown, lambda step: 0.5)
    ]
    assert estimate(before).spans[3].components[rc.ACCURACY] == 0


def test_after_another_adaptation_the_gain_is_shared_by_contribution() -> None:
    shared = [
        replace(w, contribution={"conv1": 0.3, "conv2": 0.9}) if w.start >= EFFECTIVE_AT else w for w in run(grown)
    ]
    adaptation = replace(ADAPTATION, next_adaptation_at=1200.0)
    whole = estimate(
        [replace(w, contribution={"conv1": 5.0} if w.start >= EFFECTIVE_AT else None) for w in run(grown)], adaptation
    )
    quarter = estimate(shared, adaptation)
    assert quarter.spans[3].components[rc.ACCURACY] == pytest.approx(
        whole.spans[3].components[rc.ACCURACY] / 4, rel=0.01
    )


def test_after_another_adaptation_an_ungated_one_is_unknown() -> None:
    adaptation = replace(ADAPTATION, gated=False, next_adaptation_at=1200.0)
    assert [span.seen for span in estimate(run(grown), adaptation).spans] == [True, True, False, False]


def test_windows_that_began_before_the_adaptation_do_not_count_after_it() -> None:
    adaptation = replace(ADAPTATION, effective_at=820.0)
    reward = estimate(run(grown, lambda step: 0.9), adaptation, closed=1)
    assert reward.spans[0].windows == 1


def test_errors_and_recoveries_of_the_layer_are_a_risk() -> None:
    windows = run(grown, lambda step: 0.9)
    failing = [
        replace(w, errors={"conv1": 0.1}, recoveries={"conv1": (2, 1.0)}) if w.start >= EFFECTIVE_AT else w
        for w in windows
    ]
    components = estimate(failing).components
    assert components[rc.RISK] == pytest.approx(0.5 + 0.25 + 0.02)
    assert components[rc.STABILITY] == pytest.approx(2 * (0.5 - 0.95))
    elsewhere = [replace(w, errors={"conv2": 0.1}) if w.start >= EFFECTIVE_AT else w for w in windows]
    assert estimate(elsewhere).components[rc.RISK] == pytest.approx(0.02)


def test_summary_of_a_window() -> None:
    window = make_window(
        3,
        layers=["a", "b"],
        execution_latency_ms=[0.2, 0.3],
        error_count=[0.0, 2.0],
        total_executions=[10.0, 10.0],
        contribution=[None, 0.25],
        kernel_latency_ms=[None, 0.5],
        base_latency_ms=[1.5, 2.5],
        twin_gain=[-0.125, None],
        twin_steps=[300.0, None],
        twin_probability=[0.5, None],
        recovery_success=[None, 0.4],
        model={"train_loss": 1.1, "validation_loss": None, "step_time_ms": 2.5},
    )
    summary = WindowSummary.of(window, offset=7)
    assert (summary.offset, summary.start, summary.end, summary.middle) == (7, 150, 200, 175)
    assert (summary.train_loss, summary.validation_loss, summary.step_time_ms) == (1.1, None, 2.5)
    assert summary.layers_ms == pytest.approx(0.5)
    assert summary.contribution == {"b": 0.25}
    assert summary.kernel_latency_ms == {"b": 0.5}
    assert summary.twins == {"a": (-0.125, 300, 0.5)}
    assert summary.base_latency_ms == {"a": 1.5, "b": 2.5}
    assert summary.errors == {"b": 0.2}
    assert summary.recoveries == {"b": (5, 2.0)}


def test_a_step_time_that_was_not_measured_is_unknown() -> None:
    summary = WindowSummary.of(make_window(0, model={"step_time_ms": 0.0}), offset=0)
    assert summary.step_time_ms is None
    assert (summary.twins, summary.base_latency_ms, summary.kernel_latency_ms) == (None, None, None)
