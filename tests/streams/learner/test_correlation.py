import math
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from tamiyo.schemas.learning import Experience
from tamiyo.streams.learner.correlation import (
    MAX_LABEL,
    MIN_ADAPTATIONS,
    PREDICTED,
    SERIES,
    CorrelationDetector,
    TaskCorrelations,
    task_label,
)
from tamiyo.streams.stages.rewards import components as rc
from tests.support.experiences import make_experience


def adaptation(number: int, improvement: float | None, **fields: Any) -> Experience:
    gain = improvement or 0.0
    values = {
        "reward": gain,
        "components": {**rc.NOTHING, rc.ACCURACY: 2 * gain, rc.SPEED: -gain},
        "improvement": improvement,
        "predicted_reward": gain * (1 if number % 2 else 0.5),
        "task": "digits",
    }
    return make_experience(f"d-{number}", **{**values, **fields})


def recorded(*experiences: Experience, latest: int = 200) -> CorrelationDetector:
    detector = CorrelationDetector(latest)
    for each in experiences:
        detector.record(each)
    return detector


# One task


def test_components_correlate_with_the_improvement() -> None:
    detector = recorded(*(adaptation(number, number / 20) for number in range(12)))
    assert detector.correlation(rc.ACCURACY) == pytest.approx(1)
    assert detector.correlation(rc.SPEED) == pytest.approx(-1)
    assert math.isnan(detector.correlation(rc.MEMORY))  # it never changed


def test_the_predicted_reward_correlates_with_the_reward() -> None:
    experiences = [adaptation(number, number / 20) for number in range(12)]
    flipped = [each.model_copy(update={"reward": -each.reward}) for each in experiences]
    predicted = recorded(*experiences).correlation(PREDICTED)
    assert 0.5 < predicted < 1
    assert recorded(*flipped).correlation(PREDICTED) == pytest.approx(-predicted)


def test_the_predicted_reward_correlates_with_the_worth_where_that_is_learned() -> None:
    experiences = [adaptation(number, number / 20, worth=-number / 20) for number in range(12)]
    unknown = [each.model_copy(update={"worth": None}) for each in experiences]
    assert recorded(*experiences).correlation(PREDICTED) == pytest.approx(-recorded(*unknown).correlation(PREDICTED))


def test_the_newest_revision_counts() -> None:
    newest = [adaptation(number, number / 20, revision=1) for number in range(12)]
    outdated = [adaptation(number, 0.9 - number / 20) for number in range(12)]
    expected = recorded(*newest).correlation(PREDICTED)
    # Before a restart the older revision comes first, after it once more.
    for order in ([*outdated, *newest], [*newest, *outdated]):
        assert recorded(*order).correlation(PREDICTED) == pytest.approx(expected)
    assert recorded(*outdated).correlation(PREDICTED) != pytest.approx(expected)


def test_only_the_latest_adaptations_count() -> None:
    early = [adaptation(number, 0.9 - number / 20) for number in range(12)]
    late = [adaptation(number, number / 30) for number in range(12, 24)]
    alone = recorded(*late).correlation(PREDICTED)
    assert recorded(*early, *late, latest=12).correlation(PREDICTED) == pytest.approx(alone)
    assert recorded(*early, *late, latest=13).correlation(PREDICTED) != pytest.approx(alone)


def test_too_few_adaptations_give_nan() -> None:
    experiences = [adaptation(number, number / 20) for number in range(MIN_ADAPTATIONS)]
    assert recorded(*experiences).correlation(rc.ACCURACY) == pytest.approx(1)
    assert all(math.isnan(recorded(*experiences[1:]).correlation(series)) for series in SERIES)


def test_an_experience_without_a_component_counts_for_the_others() -> None:
    whole = [adaptation(number, number / 20) for number in range(MIN_ADAPTATIONS)]
    partly = [*whole[1:], adaptation(0, 0.9, components={rc.SPEED: 0.9})]
    assert math.isnan(recorded(*partly).correlation(rc.ACCURACY))
    assert not math.isnan(recorded(*partly).correlation(rc.SPEED))


@pytest.mark.parametrize("huge", [1e308, 1e200])
def test_huge_values_do_not_break_a_scrape(huge: float) -> None:
    values = [huge if number % 2 else -huge / 2 for number in range(MIN_ADAPTATIONS)]
    fields = [{"components": dict.fromkeys(rc.WEIGHTS, -value), "predicted_reward": value} for value in values]
    detector = recorded(
        *(
            adaptation(n, value, reward=n / 20, **each)
            for n, (value, each) in enumerate(zip(values, fields, strict=True))
        )
    )
    for series in SERIES:
        found = detector.correlation(series)
        assert math.isnan(found) or -1 <= found <= 1


# Several tasks


class Shown:
    """Correlations by task, and what Prometheus reads of them."""

    def __init__(self, **limits: int) -> None:
        self.registry = CollectorRegistry()
        self.gauge = Gauge("correlation", "of a component", ["task", "component"], registry=self.registry)
        self.correlations = TaskCorrelations(self.gauge, **limits)

    def record(self, *experiences: Experience) -> None:
        for each in experiences:
            self.correlations.record(each)

    def series(self) -> Iterator[tuple[str, str, float]]:
        for family in self.registry.collect():
            for sample in family.samples:
                yield sample.labels["task"], sample.labels["component"], sample.value

    def tasks(self) -> list[str]:
        return sorted({task for task, _, _ in self.series()})

    def value(self, task: str, component: str) -> float:
        found = self.registry.get_sample_value("correlation", {"task": task, "component": component})
        assert found is not None
        return found


def test_each_task_has_its_own_correlations() -> None:
    shown = Shown()
    shown.record(*(adaptation(number, number / 20) for number in range(12)))
    shown.record(
        *(adaptation(100 + n, n / 20, task="mnist1d", components={**rc.NOTHING, rc.ACCURACY: -n}) for n in range(12))
    )
    assert shown.value("digits", rc.ACCURACY) == pytest.approx(1)
    assert shown.value("mnist1d", rc.ACCURACY) == pytest.approx(-1)
    assert {(task, component) for task, component, _ in shown.series()} == {
        (task, component) for task in ("digits", "mnist1d") for component in SERIES
    }


def test_what_was_not_executed_shows_nothing() -> None:
    shown = Shown()
    shown.record(*(adaptation(number, None) for number in range(20)))
    assert shown.tasks() == []


def test_a_task_known_only_from_the_second_revision_takes_the_experience_over() -> None:
    shown = Shown()
    shown.record(*(adaptation(number, number / 20, task="") for number in range(MIN_ADAPTATIONS)))
    assert shown.value("unknown", rc.ACCURACY) == pytest.approx(1)
    shown.record(adaptation(0, 0.0, revision=1))
    assert math.isnan(shown.value("unknown", rc.ACCURACY))  # one less than the minimum
    shown.record(*(adaptation(number, number / 20, revision=1) for number in range(1, MIN_ADAPTATIONS)))
    assert shown.value("digits", rc.ACCURACY) == pytest.approx(1)


def test_the_task_without_an_adaptation_for_the_longest_time_is_dropped_with_its_labels() -> None:
    shown = Shown(tasks=3)
    shown.record(*(adaptation(number, 0.1, task=f"task-{number}") for number in range(3)))
    shown.record(adaptation(10, 0.1, task="task-0"))
    shown.record(adaptation(11, None, task="task-1"))  # nothing was executed
    shown.record(adaptation(12, 0.1, task="task-3"))
    assert shown.tasks() == ["task-0", "task-2", "task-3"]
    assert len(list(shown.series())) == 3 * len(SERIES)
    shown.record(*(adaptation(100 + number, number / 20, task="task-1") for number in range(MIN_ADAPTATIONS)))
    assert shown.tasks() == ["task-0", "task-1", "task-3"]
    assert shown.value("task-1", rc.ACCURACY) == pytest.approx(1)


def test_any_number_of_tasks_shows_twenty() -> None:
    shown = Shown()
    shown.record(*(adaptation(number, 0.1, task=f"{number:03}") for number in range(100)))
    assert shown.tasks() == [f"{number:03}" for number in range(80, 100)]


def test_a_learner_starts_without_the_tasks_of_an_earlier_one() -> None:
    shown = Shown()
    shown.record(adaptation(0, 0.1))
    TaskCorrelations(shown.gauge)
    assert shown.tasks() == []


# Labels


@pytest.mark.parametrize("name", ["digits", "mnist1d: CNN 8/16", "téxte", "a" * MAX_LABEL])
def test_a_harmless_name_is_its_own_label(name: str) -> None:
    assert task_label(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "a" * (MAX_LABEL + 1), "x" * 2000, 'a"b', "a\nb", "a\\b", "a\0b", "{}", "a\u202eb", "<b>", "\x1b[2J",
    ],
)  # fmt: skip
def test_a_long_or_hostile_name_is_shortened_safely(name: str) -> None:
    label = task_label(name)
    assert len(label) <= MAX_LABEL
    assert all(character.isalnum() or character in "_ .:/+-" for character in label)
    assert label != task_label(name + "!")
    shown = Shown()
    shown.record(adaptation(0, 0.1, task=name))
    assert f'task="{label}"'.encode() in generate_latest(shown.registry)


def test_names_that_are_equal_once_shortened_stay_apart() -> None:
    names = ["a\nb", "a\tb", "a_b", *(f"{'x' * 100}{number}" for number in range(100))]
    assert len({task_label(name) for name in names}) == len(names)


def test_a_missing_name_is_unknown() -> None:
    assert task_label("") == "unknown"
