import math

import pytest
from prometheus_client import REGISTRY

from tamiyo.schemas.topics import DECISIONS, REWARDS
from tamiyo.streams.stages.base import PriorOutput
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards import metrics
from tamiyo.streams.stages.rewards.correlation import MIN_ADAPTATIONS, PREDICTED, SERIES, CorrelationDetector
from tests.streams.stages.rewards.runs import stage, whole_run
from tests.support.stage_log import StageHarness


@pytest.fixture(autouse=True)
def no_adaptations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.detector, "_points", {})


def exported() -> dict[str, float]:
    found = {
        name: REGISTRY.get_sample_value("tamiyo_reward_component_correlation", {"component": name}) for name in SERIES
    }
    return {name: value for name, value in found.items() if value is not None}


def harness_after(adaptations: int) -> StageHarness:
    log = whole_run(loads=tuple(range(12, 12 + 3 * adaptations, 3)))
    for number, message in enumerate(each for each in log.messages if each.topic == DECISIONS.name):
        object.__setattr__(message, "record", message.record.model_copy(update={"predicted_reward": number % 7 / 10}))
    return StageHarness(stage, log.messages).run()


def test_below_the_minimum_every_series_is_nan() -> None:
    harness_after(MIN_ADAPTATIONS - 1)
    assert list(exported()) == [*rc.WEIGHTS, PREDICTED]
    assert all(map(math.isnan, exported().values()))


def test_the_gauge_shows_the_correlations_of_the_rewards_published() -> None:
    harness = harness_after(MIN_ADAPTATIONS)
    detector = CorrelationDetector()
    for analysis in harness.records(REWARDS):
        detector.record(analysis)
    assert exported() == pytest.approx({name: detector.correlation(name) for name in SERIES}, nan_ok=True)
    assert not math.isnan(exported()[rc.ACCURACY])
    assert not math.isnan(exported()[PREDICTED])


def test_restored_rewards_count_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    published = harness_after(MIN_ADAPTATIONS).published
    before = exported()
    monkeypatch.setattr(metrics.detector, "_points", {})
    stage().restore(PriorOutput(each.topic.name, n, each.record, each.identity) for n, each in enumerate(published))
    assert exported() == pytest.approx(before, nan_ok=True)
