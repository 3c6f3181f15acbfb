"""A pipeline process: several stages, each in its own consumer group, in one event loop."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.client.tracing import traces
from tamiyo.schemas.errors import BrokerError, TamiyoError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import Topic
from tamiyo.streams.admin.acls import require, stage_grants
from tamiyo.streams.admin.store_mark import require_own_stores
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.exit_codes import EXIT_FAILURE, abort
from tamiyo.streams.process.garbage import freeze
from tamiyo.streams.process.http_endpoint import HealthServer
from tamiyo.streams.process.watchdog import LoopWatch
from tamiyo.streams.runtime import liveness
from tamiyo.streams.runtime.failures import status_of
from tamiyo.streams.runtime.stage_runner import StageRunner
from tamiyo.streams.runtime.views import Views
from tamiyo.streams.settings import WorkerSettings
from tamiyo.streams.stages.base import Stage
from tamiyo.streams.stages.registry import StageEntry, entry

log = structlog.get_logger(__name__)

EMBEDDED_FETCH_WAIT_MS = 10  # the mock cluster answers a fetch that found nothing only when this is over
LOOP_TIMEOUT_S = 5.0  # without a turn of the event loop for this long, something blocks it


class Worker:
    """Runs stages until `stop`."""

    def __init__(
        self, entries: Mapping[str, StageEntry], worker: WorkerSettings, kafka: KafkaSettings, names: TopicNames
    ) -> None:
        self._entries = entries
        self._worker = worker
        self._kafka = kafka
        self._names = names
        self._stop = asyncio.Event()
        self._last_turn = time.monotonic()
        self.runners: list[StageRunner] = []
        self.health: HealthServer | None = None

    def stop(self) -> None:
        """Begin a graceful stop; `run` returns when it is done."""
        self._stop.set()

    async def run(self) -> None:
        """Run until `stop`.

        Raises:
            BrokerError: no broker is reachable at the start, or topics are missing or do not fit together.
            ConfigurationError: a setting is wrong, or a store belongs to another installation.
        """
        stages = {name: each.load() for name, each in self._entries.items()}
        if "torch" in sys.modules:
            # With more threads than one, a busy neighbour makes a small forward pass fifty times slower.
            sys.modules["torch"].set_num_threads(1)
        settings = {name: self._entries[name].settings() for name in stages}
        for name, stage in stages.items():
            stage.check(settings[name])
        traces()  # sets up the exporter, or refuses it
        fetch_wait_ms = await self._wait_for_broker(stages)
        if self._stop.is_set():
            return
        stores: dict[str, bool] = {}
        for name, stage in stages.items():
            for url, written in stage.stores(settings[name]).items():
                stores[url] = written or stores.get(url, False)
        await asyncio.to_thread(require_own_stores, stores, self._kafka, self._names)
        watched = {topic.name: topic for stage in stages.values() for topic in stage.views}
        views = Views(list(watched.values()), self._kafka, self._names, fetch_wait_ms=fetch_wait_ms)
        self.runners = [
            StageRunner(
                stage,
                settings[name],
                group=self._names.full(self._entries[name].group),
                kafka=self._kafka,
                names=self._names,
                worker=self._worker,
                views=views,
                fetch_wait_ms=fetch_wait_ms,
            )
            for name, stage in stages.items()
        ]
        self.health = HealthServer(
            healthy=self._healthy,
            ready=lambda: self._ready(views),
            prefix=self._names.prefix,
            host=self._worker.http_host,
            port=self._worker.http_port,
        )
        await self.health.start()
        turning = asyncio.create_task(self._turn(), name="turn")
        watchdog = LoopWatch("the event loop", lambda: self._last_turn, self._worker.watchdog.loop_s)
        watchdog.start()
        checking: list[asyncio.Task[None]] = []
        try:
            await views.start()
            checking = [task for runner in self.runners for task in liveness.start(runner)]
            starting = asyncio.gather(*(runner.start() for runner in self.runners))
            await self._until_stopped(starting)
            log.info("stopping")
            await self._stop_runners()
        finally:
            watchdog.stop()
            for task in (turning, *checking):
                task.cancel()
            await views.stop()
            await self.health.stop()
        log.info("stopped")

    async def _until_stopped(self, starting: "asyncio.Future[Any]") -> None:
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            freeze()
            log.info("all stages run", stages={runner.name: runner.partitions for runner in self.runners})
            await stopping
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def _stop_runners(self) -> None:
        try:
            await asyncio.wait_for(
                asyncio.gather(*(runner.stop() for runner in self.runners)), self._worker.shutdown_timeout_s
            )
        except TimeoutError:
            # What was not committed is read again. Faust's threads may hang too, so returning is not enough.
            log.error("graceful stop timed out, exiting", seconds=self._worker.shutdown_timeout_s)
            logging.shutdown()
            os._exit(EXIT_FAILURE)

    async def _wait_for_broker(self, stages: Mapping[str, type[Stage]]) -> int:
        """Wait until the broker answers and the topics are there; return how long fetches may wait there, ms."""
        needed = {topic.name: topic for stage in stages.values() for topic in _topics(stage)}
        topics = Topics(self._kafka, self._names, list(needed.values()))

        def report(reason: str, left_s: float) -> None:
            log.warning(
                "no connection to Kafka yet",
                servers=self._kafka.bootstrap_servers, reason=reason, giving_up_in_s=round(left_s),
            )  # fmt: skip

        if not await asyncio.to_thread(
            wait_for_broker,
            self._kafka,
            self._worker.startup_timeout_s,
            report=report,
            stopped=self._stop.is_set,
        ):
            return self._worker.fetch_wait_ms
        embedded = await asyncio.to_thread(topics.embedded)
        if embedded:
            await asyncio.to_thread(topics.touch)
        else:
            for name, stage in stages.items():
                wanted = stage_grants(stage, self._entries[name].group, self._names)
                await asyncio.to_thread(require, name, wanted, self._kafka)
        problems = await asyncio.to_thread(topics.check)
        if problems:
            raise BrokerError(
                f"{len(problems)} topics do not fit the catalogue: {'; '.join(problems[:5])}"
                f"{' ...' if len(problems) > 5 else ''}. `tamiyo topics create` makes missing ones, "
                "`tamiyo topics check` lists all"
            )
        return min(EMBEDDED_FETCH_WAIT_MS, self._worker.fetch_wait_ms) if embedded else self._worker.fetch_wait_ms

    async def _turn(self) -> None:
        while True:
            self._last_turn = time.monotonic()
            await asyncio.sleep(0.5)

    def _healthy(self) -> Mapping[str, Any]:
        late = time.monotonic() - self._last_turn
        return {"ok": late < LOOP_TIMEOUT_S, "loop_late_s": round(max(0.0, late - 0.5), 3)}

    def _ready(self, views: Views) -> Mapping[str, Any]:
        return {
            "ok": views.caught_up and all(runner.ready for runner in self.runners) and not self._stop.is_set(),
            "views_caught_up": views.caught_up,
            "stages": {
                runner.name: {"assigned": runner.assigned, "ready": runner.ready, "partitions": runner.partitions}
                for runner in self.runners
            },
        }


def _topics(stage: type[Stage]) -> tuple[Topic, ...]:
    return (*stage.inputs, *stage.outputs, *stage.views)


def run_worker(
    stages: Sequence[str],
    settings: WorkerSettings | None = None,
    *,
    kafka: KafkaSettings | None = None,
    names: TopicNames | None = None,
) -> int:
    """Run the named stages until SIGTERM or SIGINT; return the process's exit status.

    Raises ConfigurationError for a stage that does not exist or a wrong setting. An unusable broker is logged and
    returns 1; `streams/process/exit_codes.py` has the others.
    """
    return run_entries({name: entry(name) for name in stages}, settings, kafka=kafka, names=names)


def run_entries(
    entries: Mapping[str, StageEntry],
    settings: WorkerSettings | None = None,
    *,
    kafka: KafkaSettings | None = None,
    names: TopicNames | None = None,
) -> int:
    """Run given stage entries as `run_worker` runs named ones."""

    async def main() -> int:
        worker = Worker(entries, settings or WorkerSettings(), kafka or KafkaSettings(), names or TopicNames())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        try:
            await worker.run()
        except BrokerError as error:
            log.error("worker cannot start", reason=str(error))
            return EXIT_FAILURE
        except TamiyoError:
            raise
        except Exception as error:
            log.critical("worker failed", exc_info=error)
            abort(status_of(error), f"the worker failed: {error!r}")
        return 0

    return asyncio.run(main())
