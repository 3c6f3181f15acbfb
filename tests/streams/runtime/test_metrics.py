"""Metrics of a stage that Prometheus rules rely on."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS
from tamiyo.streams.runtime.metrics import LAG, REJECT_KINDS, REJECTED, REPEATED, observe_deliveries
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.stages.base import Output
from tests.streams.runtime.harness import FakeKafka, TaskHarness, settle
from tests.streams.runtime.runners import make_runner
from tests.support.pairs import FACTORS, LETTERS, NUMBERS, SUMS, number


def test_rejected_records_of_every_input_and_kind_begin_at_zero() -> None:
    REJECTED.clear()
    make_runner()
    found = {
        (sample.labels["topic"], sample.labels["kind"]): sample.value
        for family in REJECTED.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["stage"] == "pairs"
    }
    assert found == {(topic.name, kind): 0 for topic in (NUMBERS, LETTERS) for kind in REJECT_KINDS}
    assert set(REJECT_KINDS) == {"unusable", "poison", "late", "too_large"}  # as the output pipeline names them


def test_repeated_outputs_begin_at_zero() -> None:
    REPEATED.clear()
    make_runner()
    labels = {"stage": "pairs", "topic": SUMS.name}
    assert REGISTRY.get_sample_value("tamiyo_records_repeated_total", labels) == 0


def test_undecodable_messages_of_a_view_begin_at_zero() -> None:
    REJECTED.clear()
    Views((FACTORS,), KafkaSettings(), TopicNames(), fetch_wait_ms=10)
    labels = {"stage": "view", "topic": FACTORS.name, "kind": "undecodable"}
    assert REGISTRY.get_sample_value("tamiyo_records_rejected_total", labels) == 0


def test_lag_counts_what_is_beyond_the_records_that_were_fed() -> None:
    async def scene() -> None:
        harness = TaskHarness(FakeKafka())
        assert harness.task.lag(NUMBERS.name) == 1_000  # the end of the fake log
        await harness.take(0, number("run", 0, 1))
        await settle()
        assert harness.task.open_records == 1  # the first of a pair
        assert harness.task.lag(NUMBERS.name) == 999
        harness.task.close()

    asyncio.run(scene())


async def ticked(tasks: dict[int, Any], *, assigned: bool = True) -> None:
    runner = make_runner()
    runner.tasks, runner.assigned = tasks, assigned
    ticking = asyncio.create_task(runner._tick())
    await asyncio.sleep(3 * runner.worker.tick_ms / 1000)
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking


def task(lags: dict[str, int], *, restored: bool = True) -> Any:
    return SimpleNamespace(tick=lambda: None, open_records=0, restored=restored, lag=lags.__getitem__)


def lag(topic: str) -> float | None:
    return REGISTRY.get_sample_value("tamiyo_stage_lag_records", {"stage": "pairs", "topic": topic})


def test_a_stages_lag_is_that_of_its_partitions_by_topic() -> None:
    LAG.clear()
    first, second = task({NUMBERS.name: 3, LETTERS.name: 0}), task({NUMBERS.name: 4, LETTERS.name: 1})
    asyncio.run(ticked({0: first, 1: second}))
    assert (lag(NUMBERS.name), lag(LETTERS.name)) == (7, 1)
    asyncio.run(ticked({}))  # an idle member of the group has none
    assert (lag(NUMBERS.name), lag(LETTERS.name)) == (0, 0)


def test_lag_is_not_reported_before_the_positions_are_known() -> None:
    LAG.clear()
    asyncio.run(ticked({0: task({NUMBERS.name: 0, LETTERS.name: 0}, restored=False)}))
    asyncio.run(ticked({}, assigned=False))
    assert lag(NUMBERS.name) is None


def test_only_a_process_that_decides_has_a_policy_version() -> None:
    """Otherwise every other process would show version 0."""
    name = "tamiyo_policy_version"
    assert REGISTRY.get_sample_value(name) is None
    decision: Any = SimpleNamespace(time_ms=0, policy_version=7)
    observe_deliveries("decisions", [(Output(DECISIONS, decision, "d-1", None), None)])
    assert REGISTRY.get_sample_value(name, {"stage": "decisions"}) == 7
