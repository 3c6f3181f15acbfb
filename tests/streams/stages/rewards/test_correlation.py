import math

import pytest

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.correlation import MIN_ADAPTATIONS, PREDICTED, SERIES, CorrelationDetector


def analysis(number: int, improvement: float | None, *, revision: int = 0, status: str = "executed") -> RewardAnalysis:
    gain = improvement or 0.0
    return RewardAnalysis(
        run_id="run-1",
        analysis_id=f"a-{number}-{revision}",
        decision_id=f"d-{number}",
        revision=revision,
        step=number,
        time_ms=0,
        action=Action(type="load_kernel", layer_id="conv1", blueprint="low_rank"),
        status=status,
        components={**rc.NOTHING, rc.ACCURACY: 2 * gain, rc.SPEED: -gain},
        weights=dict(rc.WEIGHTS),
        spans=[],
        total=gain,
        confidence=1.0,
        improvement=improvement,
        predicted_reward=gain * (1 if number % 2 else 0.5),
    )


def recorded(*analyses: RewardAnalysis, latest: int = 200) -> CorrelationDetector:
    detector = CorrelationDetector(latest)
    for each in analyses:
        detector.record(each)
    return detector


def test_components_correlate_with_the_improvement() -> None:
    detector = recorded(*(analysis(number, number / 20) for number in range(12)))
    assert detector.correlation(rc.ACCURACY) == pytest.approx(1)
    assert detector.correlation(rc.SPEED) == pytest.approx(-1)
    assert math.isnan(detector.correlation(rc.MEMORY))  # it never changed


def test_the_predicted_reward_correlates_with_the_total() -> None:
    analyses = [analysis(number, number / 20) for number in range(12)]
    flipped = [each.model_copy(update={"total": -each.total}) for each in analyses]
    predicted = recorded(*analyses).correlation(PREDICTED)
    assert 0.5 < predicted < 1
    assert recorded(*flipped).correlation(PREDICTED) == pytest.approx(-predicted)


def test_the_newest_revision_of_executed_adaptations_counts() -> None:
    newest = [analysis(number, number / 20, revision=1) for number in range(12)]
    outdated = [analysis(number, 0.9 - number / 20) for number in range(12)]
    refused = [analysis(number, -0.5, status="refused") for number in range(20, 40)]
    unknown = [analysis(number, None) for number in range(40, 60)]
    expected = recorded(*newest).correlation(PREDICTED)
    # Before a restart the older revision comes first, after it once more.
    for order in ([*outdated, *newest], [*newest, *outdated], [*refused, *newest, *unknown]):
        assert recorded(*order).correlation(PREDICTED) == pytest.approx(expected)


def test_only_the_latest_adaptations_count() -> None:
    early = [analysis(number, 0.9 - number / 20) for number in range(12)]
    late = [analysis(number, number / 30) for number in range(12, 24)]
    alone = recorded(*late).correlation(PREDICTED)
    assert recorded(*early, *late, latest=12).correlation(PREDICTED) == pytest.approx(alone)
    assert recorded(*early, *late, latest=13).correlation(PREDICTED) != pytest.approx(alone)


def test_too_few_adaptations_give_nan() -> None:
    analyses = [analysis(number, number / 20) for number in range(MIN_ADAPTATIONS)]
    assert recorded(*analyses).correlation(rc.ACCURACY) == pytest.approx(1)
    assert all(math.isnan(recorded(*analyses[1:]).correlation(series)) for series in SERIES)
