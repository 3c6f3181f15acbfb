"""The learner's process: the experience topic in, released policies out.

No consumer group decides what has been learned: the learner reads every partition itself, from the offsets in the
checkpoint it goes on from. The offsets are written in one file with the weights that came of them, so that after any
crash each experience counts once.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import Message

from tamiyo.host import blueprints
from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.models.learner import Learner, Taken, UpdateReport
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, SchemaError, TamiyoError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin.acls import grants, require
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.learner import metrics
from tamiyo.streams.learner.experience_topic import ExperienceTopic
from tamiyo.streams.learner.releases import CheckpointReleases
from tamiyo.streams.process.exit_codes import EXIT_FAILURE, EXIT_SOFTWARE, EXIT_TEMPFAIL
from tamiyo.streams.process.http_endpoint import HealthServer
from tamiyo.streams.process.malloc import trim
from tamiyo.streams.process.watchdog import LoopWatch, StallDetector
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.settings import LearnerSettings
from tamiyo.streams.stages.base import Incoming, Reject

__all__ = ["Learner", "LearnerLoop", "run_learner"]

log = structlog.get_logger(__name__)

REFRESH_S = 30.0  # how often partitions are counted again, and the lag is measured


class LearnerLoop:
    """Feeds a Learner from Kafka and releases what it learns; `run` blocks in a thread of its own."""

    def __init__(
        self,
        settings: LearnerSettings,
        kafka: KafkaSettings,
        names: TopicNames,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._kafka = kafka
        self._names = names
        self._clock = clock
        self._stop = threading.Event()
        self._waiting_since: float | None = None
        self._turned = clock()
        self._refreshed = clock()
        self._still = StallDetector()
        self.ready = False
        """Whether it reads, with a policy released."""
        self.began = False
        """Whether it ever was ready: what fails after that may pass."""
        self.learner: Learner | None = None

    def stop(self) -> None:
        """Ask `run` to return once the update in hand is released."""
        self._stop.set()

    @property
    def turned(self) -> float:
        """When the loop last came round, on its clock."""
        return self._turned

    def health(self) -> Mapping[str, Any]:
        """Say whether the loop comes round."""
        late = self._clock() - self._turned
        return {"ok": late < self._settings.stall_timeout_s, "loop_late_s": round(late, 3)}

    def readiness(self) -> Mapping[str, Any]:
        """Say whether it learns."""
        learner = self.learner
        return {
            "ok": self.ready and not self._stop.is_set(),
            "policy_version": learner.version if learner else None,
            "experiences": learner.experiences if learner else 0,
            "updates": learner.updates if learner else 0,
            "rolled_back": learner.rolled_back if learner else 0,
        }

    def run(self) -> None:
        """Learn until `stop`.

        Raises BrokerError where Kafka or its topics cannot be used, OSError where the checkpoint store cannot,
        ConfigurationError where a setting is wrong.
        """
        if not self._wait_for_topics():
            return
        settings = self._settings
        self._releases = CheckpointReleases(
            settings.policy,
            CheckpointStore(settings.checkpoint_url),
            self._kafka,
            self._names,
            keep=settings.keep_checkpoints,
            delivery_timeout_s=settings.delivery_timeout_s,
        )
        self._dead_letters = AwaitedProducer(self._kafka, timeout_s=settings.delivery_timeout_s)
        self._experiences = ExperienceTopic(self._kafka, self._names)
        try:
            learner = self._begin()
            self._refill(learner, self._experiences)
            self._experiences.start()
            self.ready = self.began = True
            while not self._stop.is_set():
                self._turn(learner)
        finally:
            self.ready = False
            self._experiences.close()
            with contextlib.suppress(BrokerError):  # they are read, and rejected, again after a restart
                self._dead_letters.flush()
        log.info("stopped", version=learner.version, not_yet_learned=learner.waiting)

    # Beginning

    def _wait_for_topics(self) -> bool:
        """Wait for the broker and the learner's topics; returns False where it was stopped meanwhile."""

        def report(reason: str, left_s: float) -> None:
            self._turned = self._clock()
            log.warning(
                "no connection to Kafka yet",
                servers=self._kafka.bootstrap_servers, reason=reason, giving_up_in_s=round(left_s),
            )  # fmt: skip

        if not wait_for_broker(self._kafka, self._settings.startup_timeout_s, report=report, stopped=self._stop.is_set):
            return False
        topics = Topics(self._kafka, self._names, [EXPERIENCE, CHECKPOINTS])
        if topics.embedded():
            topics.touch()
        else:
            require("learner", grants("learner", self._names), self._kafka)
        missing = topics.missing()
        if missing:
            raise BrokerError(f"there are no topics {', '.join(missing)}; `tamiyo topics create` makes them")
        return True

    def _begin(self) -> Learner:
        """Go on from the newest checkpoint, or release the heuristic as a new policy."""
        settings = self._settings
        catalogue = blueprints.names()
        found = self._releases.find(catalogue)
        if found.policy is None or found.header is None:
            # Not version 0 where there was one before: a number never means two policies.
            version = found.newest + 1
            self._experiences.seek({})
            policy = TamiyoPolicy(PolicyConfig(blueprints=catalogue, seed=settings.seed))
            self.learner = Learner(policy, settings, version=version)
            self._release(self.learner, parent=None)
            return self.learner
        header = found.header
        self.learner = Learner(
            found.policy,
            settings,
            version=header.version,
            newest=found.newest,
            experiences=header.experiences,
            updates=header.updates,
            state=found.state,
        )
        self._experiences.seek({int(number): offset for number, offset in header.offsets.items()})
        log.info("going on from a checkpoint", version=header.version, experiences=header.experiences)
        if header.config.blueprints != catalogue or header.version < found.newest:
            # Another set of actions is another policy, and a decision by the one that gave way must not be its.
            self.learner.renumber()
            self._release(self.learner, parent=header.version)
        elif not found.announced:
            self._releases.announce(header, found.data)
        metrics.VERSION.set(self.learner.version)
        return self.learner

    def _refill(self, learner: Learner, experiences: ExperienceTopic) -> None:
        """Fill replay with what the checkpoint has counted already; it never counts again."""
        for message in experiences.tail(self._settings.refill):
            self._turned = self._clock()
            # What cannot be decoded went to the dead letters the first time.
            with contextlib.suppress(SchemaError):
                learner.restore_experience(decode(message.value(), Experience))
            if self._stop.is_set():
                return
        log.info("replay is filled again", experiences=len(learner.replay))

    # Going on

    def _turn(self, learner: Learner) -> None:
        now = self._turned = self._clock()
        # Never more than an update's worth: what is read is learned before the next is, and stands in its offsets.
        room = max(1, self._settings.fresh_batch - learner.waiting)
        for message in self._experiences.read(room):
            self._take(learner, message)
        self._dead_letters.poll()
        if learner.waiting and self._waiting_since is None:
            self._waiting_since = now
        overdue = self._waiting_since is not None and now - self._waiting_since >= self._settings.max_wait_s
        if learner.ready(overdue=overdue):
            self._update(learner, overdue=overdue)
        metrics.WAITING.set(learner.waiting)
        if now - self._refreshed >= REFRESH_S:
            self._refreshed = now
            self._watch(self._experiences.refresh())

    def _watch(self, lag: int | None) -> None:
        """Raise BrokerError where messages wait and none was read for too long: librdkafka can stall silently."""
        looks = self._still.check(tuple(self._experiences.positions.items()))
        if not lag:
            self._still.reset()
        elif looks * REFRESH_S >= self._settings.stall_timeout_s:
            found = self._experiences.unread()
            self._still.reset()
            if found is not None:
                patience = self._settings.stall_timeout_s
                raise BrokerError(
                    f"watchdog: offset {found[1]} of partition {found[0]} waits unread for {patience:.0f} s"
                )

    def _take(self, learner: Learner, message: Message) -> None:
        try:
            experience = decode(message.value(), Experience)
        except SchemaError as problem:
            self._reject(message, "undecodable", f"{type(problem).__name__}: {problem}")
        else:
            rejected = learner.rejected.copy()
            taken = learner.take(experience)
            metrics.EXPERIENCES.labels(taken.value).inc()
            if taken == Taken.REJECTED:
                reason = next(iter(learner.rejected - rejected))
                metrics.REJECTED.labels(reason).inc()
                log.warning("an experience is not learned from", experience=experience.experience_id, reason=reason)

    def _reject(self, message: Message, kind: str, reason: str) -> None:
        metrics.REJECTED.labels(kind).inc()
        log.error("an experience cannot be read", partition=message.partition(), offset=message.offset(), reason=reason)
        where = (EXPERIENCE.name, message.partition(), message.offset())
        source = Incoming(*where, timestamp_ms=0, record=None, raw=message.value() or b"", key=message.key())
        topic, key, value, headers = message_of(Reject(source, reason), "learner")
        self._dead_letters.produce(self._names.full(topic), value, key, headers=headers)

    def _update(self, learner: Learner, *, overdue: bool) -> None:
        parent = learner.version
        began = time.perf_counter()
        report = learner.learn(overdue=overdue)
        metrics.UPDATE_SECONDS.observe(time.perf_counter() - began)
        self._waiting_since = None
        if report is not None:
            self._tell(report)
            if report.accepted:
                self._release(learner, parent=parent)
        trim()

    def _release(self, learner: Learner, *, parent: int | None) -> None:
        header = learner.header(
            name=self._settings.policy,
            offsets={str(number): offset for number, offset in sorted(self._experiences.positions.items())},
            time_ms=time.time_ns() // 1_000_000,
            parent=parent,
        )
        # A bad message before these offsets will not be read again: it must be with the dead letters by now.
        self._dead_letters.flush()
        self._releases.release(header, learner.checkpoint(header))
        metrics.VERSION.set(learner.version)

    def _tell(self, report: UpdateReport) -> None:
        metrics.UPDATES.labels("accepted" if report.accepted else "rolled_back").inc()
        metrics.show(report.metrics)
        facts = {"version": report.version, "fresh": report.fresh, "replayed": report.replayed}
        if report.accepted:
            log.info("learned", **facts, mean_reward=report.metrics.get("charts/mean_reward"))
        else:
            log.warning("an update was rolled back", **facts, reason=report.reason)


def run_learner(
    settings: LearnerSettings | None = None,
    *,
    kafka: KafkaSettings | None = None,
    names: TopicNames | None = None,
) -> int:
    """Learn until SIGTERM or SIGINT; return the process's exit status.

    On a signal the update in hand is finished and released. What was read but not learned from is read again by the
    next learner. A broker or store that cannot be used is logged and gives 1, or 75 once it has run; a bug gives 70.
    """

    async def main() -> int:
        chosen = settings or LearnerSettings()
        loop = LearnerLoop(chosen, kafka or KafkaSettings(), names or TopicNames())
        health = HealthServer(healthy=loop.health, ready=loop.readiness, host=chosen.http_host, port=chosen.http_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, loop.stop)
        await health.start()
        watchdog = LoopWatch("the learner's loop", lambda: loop.turned, chosen.stall_timeout_s)
        watchdog.start()
        try:
            await asyncio.to_thread(loop.run)
        except (TamiyoError, OSError) as error:
            log.error("the learner cannot go on", reason=f"{type(error).__name__}: {error}")
            return EXIT_TEMPFAIL if loop.began else EXIT_FAILURE
        except Exception as error:
            log.critical("a bug in the learner: the process ends, nothing more is learned", exc_info=error)
            return EXIT_SOFTWARE
        finally:
            watchdog.stop()
            await health.stop()
        return 0

    return asyncio.run(main())
