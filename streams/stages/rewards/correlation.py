"""Which components of the reward move with real improvement, and whether what was predicted came true.

A component that does not correlate with the measured improvement over many adaptations is a shaped term that teaches
the policy something else than to lower the loss.
"""

from collections.abc import Iterable, Sequence
from statistics import StatisticsError, correlation

from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.streams.stages.rewards.components import WEIGHTS

PREDICTED = "predicted_reward"
MIN_ADAPTATIONS = 10  # fewer say nothing: at 10, a correlation of .63 is where chance ends (5 %)


def correlations(analyses: Iterable[RewardAnalysis]) -> dict[str, float | None]:
    """Return each component's Pearson correlation with the improvement, and the predicted reward's with the total.

    Over the newest revision of every executed adaptation whose improvement is known. None where there are fewer than
    MIN_ADAPTATIONS, or one side never changed.
    """
    newest: dict[str, RewardAnalysis] = {}
    for analysis in analyses:
        known = newest.get(analysis.decision_id)
        if analysis.status == "executed" and (known is None or known.revision < analysis.revision):
            newest[analysis.decision_id] = analysis
    judged = [analysis for analysis in newest.values() if analysis.improvement is not None]
    improvements = [analysis.improvement or 0.0 for analysis in judged]
    found = {name: _pearson([each.components[name] for each in judged], improvements) for name in WEIGHTS}
    found[PREDICTED] = _pearson([each.predicted_reward for each in judged], [each.total for each in judged])
    return found


def _pearson(first: Sequence[float], second: Sequence[float]) -> float | None:
    if len(first) < MIN_ADAPTATIONS:
        return None
    try:
        return correlation(first, second)
    except StatisticsError:  # one of them is constant
        return None
