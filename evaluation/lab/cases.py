"""Run the rewards stage over logged traffic: the rewards it gives, and the evidence that it saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from tamiyo.evaluation.lab.pipeline import default_settings
from tamiyo.evaluation.lab.traffic import Traffic
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.schemas.topics import REWARDS
from tamiyo.streams.settings import RewardSettings
from tamiyo.streams.stages.base import Incoming, Output
from tamiyo.streams.stages.rewards.estimator import GainEstimator
from tamiyo.streams.stages.rewards.evidence import Case, evidence
from tamiyo.streams.stages.rewards.gain import Gain
from tamiyo.streams.stages.rewards.stage import RewardsStage


@dataclass(slots=True)
class Recorder:
    """An estimator that keeps the evidence it is shown and estimates nothing."""

    version: str = "recorder"
    one_quantity: bool = True
    seen: dict[tuple[str, float], dict[str, float]] = field(default_factory=dict)
    """By decision id and end of the span."""

    def gain(self, case: Case) -> Gain | None:
        """Keep the case's evidence; the last that is seen of a span counts."""
        if not measured(case):
            return None
        self.seen[case.decision.decision_id, case.span_start] = evidence(case)
        return Gain(0.0)


def measured(case: Case) -> bool:
    """Return whether a loss was measured in the span."""
    return any(w.train_loss is not None or w.validation_loss is not None for w in case.inside)


def rewards(
    traffic: Traffic, estimator: GainEstimator, on_reward: Callable[[RewardAnalysis], None] | None = None
) -> dict[str, RewardAnalysis]:
    """Return the final reward of each decision, as the stage gives it with `estimator`.

    Args:
        traffic: A run.
        estimator: Estimates the gains.
        on_reward: Called with every revision.
    """
    with default_settings():
        stage = RewardsStage(0, RewardSettings(estimator="rule"), {})
    stage.use(estimator)
    offsets: dict[str, int] = defaultdict(int)
    found: dict[str, RewardAnalysis] = {}
    for topic, record in traffic.records():
        incoming = Incoming(topic.name, 0, offsets[topic.name], record.time_ms, record)
        offsets[topic.name] += 1
        for output in stage.feed([incoming]):
            if isinstance(output, Output) and output.topic is REWARDS:
                analysis = output.record
                assert isinstance(analysis, RewardAnalysis)
                found[analysis.decision_id] = analysis
                if on_reward is not None:
                    on_reward(analysis)
    return found


def evidence_of(traffic: Traffic) -> dict[str, list[dict[str, float]]]:
    """Return the evidence of every executed adaptation at the end of each span that was seen, oldest first."""
    recorder = Recorder()
    rewards(traffic, recorder)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for (decision, _), values in sorted(recorder.seen.items(), key=lambda item: item[0][1]):
        found[decision].append(values)
    return dict(found)
