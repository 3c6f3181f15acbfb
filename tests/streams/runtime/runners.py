"""Stage runners of the pair stage."""

from typing import Any

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.runtime.stage_runner import StageRunner
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WatchdogSettings, WorkerSettings
from tests.support.pairs import PairSettings, PairStage


def make_runner(
    watchdog: WatchdogSettings | None = None,
    *,
    kafka: KafkaSettings | None = None,
    names: TopicNames | None = None,
    **more: Any,
) -> StageRunner:
    """Return a runner that has not started."""
    kafka, names = kafka or KafkaSettings(), names or TopicNames()
    return StageRunner(
        PairStage,
        PairSettings(),
        group=names.full("g"),
        kafka=kafka,
        names=names,
        worker=WorkerSettings(watchdog=watchdog or WatchdogSettings()),
        views=Views(PairStage.views, kafka, names, fetch_wait_ms=10),
        fetch_wait_ms=10,
        **more,
    )
