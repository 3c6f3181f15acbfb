"""The learner's loop: reads the experience topic, updates the policy and releases it.

The learner reads every partition itself, from the offsets in the checkpoint that it resumes from, without a consumer
group. A checkpoint file holds both the weights and the offsets of the experiences that they were learned from, so that
each experience counts once after any crash.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import Message

from tamiyo.host import blueprints
from tamiyo.models.builtin import initial_policy
from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.models.learner import Learner, Taken, UpdateReport
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin.acls import grants, require
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.learner import metrics
from tamiyo.streams.learner.correlation import TaskCorrelations
from tamiyo.streams.learner.experience_topic import ExperienceTopic
from tamiyo.streams.learner.releases import CheckpointReleases
from tamiyo.streams.process.malloc import trim
from tamiyo.streams.process.watchdog import StallDetector
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.settings import LearnerSettings
from tamiyo.streams.stages.base import Incoming, Reject

log = structlog.get_logger(__name__)

REFRESH_S = 30.0  # interval at which new partitions are added and the lag is measured


class LearnerLoop:
    """Feeds a Learner from Kafka and releases its policies. `run` blocks, in a separate thread."""

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
        self._stalls = StallDetector()
        self.ready = False
        """Whether it is reading, with a policy released."""
        self.started = False
        """Whether it was ever ready: a failure after that may be an outage."""
        self.learner: Learner | None = None

    def stop(self) -> None:
        """Make `run` return once the current update is released."""
        self._stop.set()

    @property
    def turned(self) -> float:
        """Time of the loop's last turn, on its clock."""
        return self._turned

    def health(self) -> Mapping[str, Any]:
        """Return whether the loop is turning."""
        late = self._clock() - self._turned
        return {"ok": late < self._settings.stall_timeout_s, "loop_late_s": round(late, 3)}

    def readiness(self) -> Mapping[str, Any]:
        """Return whether it is learning, and its progress."""
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

        Raises:
            BrokerError: Kafka or its topics cannot be used.
            OSError: the checkpoint store cannot be used.
            ConfigurationError: a setting is wrong.
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
        self._correlations = TaskCorrelations(metrics.CORRELATION)
        try:
            learner = self._start()
            self._refill(learner, self._experiences)
            self._experiences.start()
            self.ready = self.started = True
            while not self._stop.is_set():
                self._turn(learner)
        finally:
            self.ready = False
            self._experiences.close()
            with contextlib.suppress(BrokerError):  # they are read, and rejected, again after a restart
                self._dead_letters.flush()
        log.info("stopped", version=learner.version, waiting_experiences=learner.waiting)

    # Start

    def _wait_for_topics(self) -> bool:
        """Wait for the broker and check the topics; return False where `stop` was called meanwhile."""

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
            raise BrokerError(f"there are no topics {', '.join(missing)}; `tamiyo topics create` creates them")
        return True

    def _start(self) -> Learner:
        """Resume from the newest checkpoint, or release a new policy."""
        settings = self._settings
        catalogue = blueprints.names()
        found = self._releases.find(catalogue)
        if found.policy is None or found.header is None:
            # Not version 0 where that existed before: a number never means two policies.
            version = found.newest + 1
            self._experiences.seek({})
            policy = initial_policy(settings.initial_policy, catalogue, seed=settings.seed)
            log.info("starting from a new policy", source=settings.initial_policy)
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
        log.info("resuming from a checkpoint", version=header.version, experiences=header.experiences)
        if header.config.blueprints != catalogue or header.version < found.newest:
            # Another set of actions is another policy, which must not share a number with the skipped one.
            self.learner.renumber()
            self._release(self.learner, parent=header.version)
        elif not found.announced:
            self._releases.announce(header, found.data)
        metrics.VERSION.set(self.learner.version)
        return self.learner

    def _refill(self, learner: Learner, experiences: ExperienceTopic) -> None:
        """Refill replay and the correlations with experiences that the checkpoint has counted; they trigger nothing."""
        for message in experiences.tail(self._settings.refill):
            self._turned = self._clock()
            # A message that cannot be decoded was dead-lettered when it was first read.
            with contextlib.suppress(SchemaError):
                experience = decode(message.value(), Experience)
                self._correlate(experience, learner.restore_experience(experience))
            if self._stop.is_set():
                return
        log.info("replay refilled", experiences=len(learner.replay))

    # Learning

    def _turn(self, learner: Learner) -> None:
        now = self._turned = self._clock()
        # Never more than one update needs: the checkpoint's offsets then cover exactly what it was learned from.
        wanted = max(1, self._settings.fresh_batch - learner.waiting)
        for message in self._experiences.read(wanted):
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
            self._check_stall(self._experiences.refresh())

    def _check_stall(self, lag: int | None) -> None:
        """Raise BrokerError where messages wait and none was read for too long: librdkafka can stall silently."""
        checks = self._stalls.check(tuple(self._experiences.positions.items()))
        if not lag:
            self._stalls.reset()
        elif checks * REFRESH_S >= self._settings.stall_timeout_s:
            found = self._experiences.unread()
            self._stalls.reset()
            if found is not None:
                timeout_s = self._settings.stall_timeout_s
                raise BrokerError(
                    f"watchdog: offset {found[1]} of partition {found[0]} has been unread for {timeout_s:.0f} s"
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
            self._correlate(experience, taken)
            if taken == Taken.REJECTED:
                reason = next(iter(learner.rejected - rejected))
                metrics.REJECTED.labels(reason).inc()
                log.warning("experience rejected", experience=experience.experience_id, reason=reason)

    def _correlate(self, experience: Experience, taken: Taken) -> None:
        if taken in (Taken.FRESH, Taken.REVISED):
            self._correlations.record(experience)

    def _reject(self, message: Message, kind: str, reason: str) -> None:
        metrics.REJECTED.labels(kind).inc()
        log.error("message rejected", partition=message.partition(), offset=message.offset(), reason=reason)
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
            self._log(report)
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
        # Rejected messages before these offsets are not read again: they must be dead-lettered by now.
        self._dead_letters.flush()
        self._releases.release(header, learner.checkpoint(header))
        metrics.VERSION.set(learner.version)

    def _log(self, report: UpdateReport) -> None:
        metrics.UPDATES.labels("accepted" if report.accepted else "rolled_back").inc()
        metrics.show(report.metrics)
        fields = {"version": report.version, "fresh": report.fresh, "replayed": report.replayed}
        if report.accepted:
            log.info("policy updated", **fields, mean_reward=report.metrics.get("charts/mean_reward"))
        else:
            log.warning("update rolled back", **fields, reason=report.reason)
