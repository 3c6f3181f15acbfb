"""Repeats, the order across topics and restarts change no reward, and what is held for a restart is bounded."""

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, OUTCOMES, REWARDS, WINDOWS, Topic
from tamiyo.streams.stages.rewards.stage import RewardsStage
from tests.streams.stages.rewards.runs import SETTINGS, loaded, rewards_of, stage, whole_run
from tests.support.stage_log import Log, StageHarness


def test_a_run_that_was_idle_before_a_restart_is_closed_after_it() -> None:
    log = whole_run(windows=20, ends=False)
    harness = StageHarness(stage, log.messages).run()
    harness.take(harness.stage.tick(10**15))
    assert harness.stage.open_offsets()  # records of the run may be waiting on the log
    harness.stage.backlog = 0
    harness.take(harness.stage.tick(10**15 + 2000))
    assert rewards_of(harness, loaded(log).decision_id)[-1].complete
    assert harness.stage.open_offsets() == {}


def test_repeats_change_nothing() -> None:
    log = whole_run()
    once = StageHarness(stage, log.messages).run()
    twice = Log()
    for message in log.messages:
        topic = next(topic for topic in RewardsStage.inputs if topic.name == message.topic)
        twice.add(topic, message.record)
        twice.add(topic, message.record)
    assert StageHarness(stage, twice.messages).run().records(REWARDS) == once.records(REWARDS)


def test_held_records_are_bounded_by_the_longest_span() -> None:
    log = whole_run(windows=200, ends=False, loads=(12, 100))
    harness = StageHarness(stage, log.messages).run()
    held = 200 - harness.committed[WINDOWS.name]
    assert held == SETTINGS.baseline_windows + 1  # the newest belongs to the next decision
    assert harness.committed[GRAPHS.name] == 200


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_the_order_across_topics_does_not_matter(seed: int) -> None:
    log = whole_run(windows=58, refused=(30,))
    rng = random.Random(seed)
    queues: dict[str, list[Any]] = {}
    for message in log.messages:
        queues.setdefault(message.topic, []).append(message)
    shuffled = []
    while queues:
        topic = rng.choice(sorted(queues))
        shuffled.append(queues[topic].pop(0))
        if not queues[topic]:
            del queues[topic]
    ordered = StageHarness(stage, log.messages).run()
    other = StageHarness(stage, shuffled).run()
    assert {each.identity: each.record for each in other.published} == {
        each.identity: each.record for each in ordered.published
    }


@given(st.lists(st.integers(1, 190), min_size=1, max_size=3), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_a_crash_anywhere_changes_nothing(crashes: list[int], batch: int) -> None:
    log = whole_run(loads=(12, 20), refused=(16,))
    whole = StageHarness(stage, log.messages).run()
    harness = StageHarness(stage, log.messages)
    for crash in sorted(crashes):
        harness.run(crash, batch=batch)
    harness.run(batch=batch)
    assert {each.identity: each.record for each in harness.published} == {
        each.identity: each.record for each in whole.published
    }
    assert harness.committed == whole.committed


def test_a_crash_between_analysis_and_experience_loses_neither() -> None:
    log = whole_run(windows=1, loads=())
    whole = StageHarness(stage, log.messages).run()
    half = StageHarness(stage, log.messages, published=[each for each in whole.published if each.topic is REWARDS])
    assert half.run().records(EXPERIENCE) == whole.records(EXPERIENCE)


@pytest.mark.parametrize("order", [*itertools.permutations((WINDOWS, GRAPHS, DECISIONS, OUTCOMES))], ids=lambda _: "")
def test_records_read_again_may_arrive_topic_by_topic(order: tuple[Topic, ...]) -> None:
    log = whole_run(40, (12, 15), ends=True)
    expected = StageHarness(stage, log.messages).run()
    middle = next(n for n, each in enumerate(log.messages) if each.topic == WINDOWS.name and each.offset == 20)
    harness = StageHarness(stage, log.messages).run(middle)
    names = [topic.name for topic in order]
    harness.log = sorted(log.messages[:middle], key=lambda each: names.index(each.topic)) + log.messages[middle:]
    harness.run()
    for topic in (REWARDS, EXPERIENCE):
        assert {each.model_dump_json() for each in harness.records(topic)} == {
            each.model_dump_json() for each in expected.records(topic)
        }
    assert harness.rejected == []
