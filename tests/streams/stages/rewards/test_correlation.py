import pytest

from tamiyo.schemas.adaptation import Action
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.correlation import PREDICTED, correlations


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


def test_components_that_move_with_improvement_are_found() -> None:
    found = correlations(analysis(number, number / 20) for number in range(12))
    assert found[rc.ACCURACY] == pytest.approx(1)
    assert found[rc.SPEED] == pytest.approx(-1)
    assert found[rc.MEMORY] is None  # it never changed
    assert found[PREDICTED] is not None
    assert 0.5 < found[PREDICTED] < 1


def test_the_newest_revision_of_executed_adaptations_counts() -> None:
    told = [analysis(number, number / 20, revision=1) for number in range(12)]
    noise = [analysis(number, 0.9 - number / 20) for number in range(12)]
    other = [analysis(number, -0.5, status="refused") for number in range(20, 40)]
    unknown = [analysis(number, None) for number in range(40, 60)]
    assert correlations([*told, *noise, *other, *unknown])[rc.ACCURACY] == pytest.approx(1)


def test_few_adaptations_say_nothing() -> None:
    assert set(correlations(analysis(number, number / 20) for number in range(9)).values()) == {None}
