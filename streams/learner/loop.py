"""The learner's loop: reads the experience topic, updates the policy and releases it.

The learner reads every partition itself, from the offsets in the checkpoint that it resumes from, without a consumer
group. A checkpoint file holds both the weights and the offsets of the experiences that they were learned from, so that
each experience counts once after any crash.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from confluent_kafka import Message

from tamiyo.host import blueprints
from tamiyo.models.builtin import initial_policy
from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum
from tamiyo.models.learning.learner import Learner, Taken, UpdateReport
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.broker_wait import wait_for_broker
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, PolicyError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import Experience, PolicyCheckpoint
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin.acls import grants, require
from tamiyo.streams.admin.store_mark import require_own_stores
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.learner import metrics
from tamiyo.streams.learner.correlation import TaskCorrelations
from tamiyo.streams.learner.experience_topic import ExperienceTopic
from tamiyo.streams.learner.operator_orders import OperatorOrders
from tamiyo.streams.learner.release_guard import ReleaseGuard
from tamiyo.streams.learner.releases import CheckpointReleases, ResumePoint
from tamiyo.streams.process.malloc import trim
from tamiyo.streams.process.watchdog import StallDetector
from tamiyo.streams.runtime.encoding import message_of
from tamiyo.streams.settings import LearnerSettings
from tamiyo.streams.stages.base import Incoming, Reject

log = structlog.get_logger(__name__)

REFRESH_S = 30.0  # interval at which new partitions are added and the lag is measured
REFUSED = 32  # updates rolled back one after another, after which the policy is released anew to keep the offsets


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
        self._announced: PolicyCheckpoint  # the newest release
        self._refused = 0  # updates rolled back since then
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
            ConfigurationError: a setting is wrong, or the store belongs to another installation.
        """
        if not self._wait_for_topics():
            return
        settings = self._settings
        require_own_stores({settings.checkpoint_url: True}, self._kafka, self._names)
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
        self._orders = OperatorOrders(settings.policy, self._kafka, self._names)
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
            self._orders.close()
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
        # Before the newest checkpoint is looked up, so that a rollback in between is not missed.
        self._orders.start(self._stop.is_set)
        found = self._releases.find(catalogue)
        if found.policy is None or found.header is None:
            # Not version 0 where that existed before: a number never means two policies.
            version = found.newest + 1
            self._experiences.seek({})
            policy = initial_policy(settings.initial_policy, catalogue, seed=settings.seed)
            log.info("starting from a new policy", source=settings.initial_policy)
            self.learner = Learner(policy, settings, version=version)
            self._guard(self.learner, version, policy, rolled_back=found.rolled_back)
            self._release(self.learner, parent=None)
            self._releases.fallback = (version, self._announced.checksum)
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
        self._resume_guard(self.learner, header, found)
        if header.config.blueprints != catalogue or header.version < found.newest:
            # Another set of actions is another policy, which must not share a number with the skipped one.
            self.learner.renumber()
            self._release(self.learner, parent=header.version)
        elif not found.announced:
            self._announced = self._releases.announce(header, found.data)
        metrics.VERSION.set(self.learner.version)
        return self.learner

    def _guard(self, learner: Learner, reference: int, policy: TamiyoPolicy, *, rolled_back: Iterable[int]) -> None:
        """Check the updates of `learner`, and compare the live rewards of versions after `reference` with it."""
        self._release_guard = ReleaseGuard(self._settings, learner, rolled_back)
        self._release_guard.begin(reference, policy)

    def _resume_guard(self, learner: Learner, header: CheckpointHeader, found: ResumePoint) -> None:
        """Go on with the test of live rewards that the checkpoint was released in."""
        rolled_back = {*header.release.rolled_back, *found.rolled_back}
        reference, policy, digest = header.version, learner.policy, checksum(found.data)
        earlier = header.release.reference_version
        if earlier is not None and earlier != reference and earlier not in rolled_back:
            try:
                policy, _, _, digest = self._releases.read(earlier, learner.policy.config.blueprints)
                reference = earlier
            except PolicyError as error:
                log.warning("reference version cannot be read, starting a new test", version=earlier, error=str(error))
        self._guard(learner, reference, policy, rolled_back=rolled_back)
        self._release_guard.released(learner.policy)
        self._releases.fallback = (reference, digest)
        self._announced = self._releases.describe(header, found.data)

    def _refill(self, learner: Learner, experiences: ExperienceTopic) -> None:
        """Refill replay and the correlations with experiences that the checkpoint has counted; they trigger nothing."""
        for message in experiences.tail(self._settings.refill):
            self._turned = self._clock()
            # A message that cannot be decoded was dead-lettered when it was first read.
            with contextlib.suppress(SchemaError):
                experience = decode(message.value(), Experience)
                self._note(learner, experience, learner.restore_experience(experience))
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
        self._orders.poll()
        metrics.FROZEN.set(self._orders.frozen)
        if self._orders.frozen:
            learner.skip_update()
            self._waiting_since = None
        elif (ordered := self._orders.rollback) is not None:
            self._orders.rollback = None
            self._obey(learner, ordered)
        if learner.waiting and self._waiting_since is None:
            self._waiting_since = now
        overdue = self._waiting_since is not None and now - self._waiting_since >= self._settings.max_wait_s
        if learner.ready(overdue=overdue):
            self._update(learner, overdue=overdue)
        metrics.WAITING.set(learner.waiting)
        if now - self._refreshed >= REFRESH_S:
            self._refreshed = now
            lag = self._experiences.refresh()
            if lag is not None:
                self._orders.refresh()
            self._check_stall(lag)

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
            self._note(learner, experience, taken)
            if taken == Taken.REJECTED:
                reason = next(iter(learner.rejected - rejected))
                metrics.REJECTED.labels(reason).inc()
                log.warning("experience rejected", experience=experience.experience_id, reason=reason)

    def _note(self, learner: Learner, experience: Experience, taken: Taken) -> None:
        """Count an experience in the correlations, and show it to the gates and the canary."""
        if taken in (Taken.FRESH, Taken.REVISED):
            self._correlations.record(experience)
            example = learner.example(experience.experience_id)
            if example is not None:
                self._release_guard.take(example)

    def _reject(self, message: Message, kind: str, reason: str) -> None:
        metrics.REJECTED.labels(kind).inc()
        log.error("message rejected", partition=message.partition(), offset=message.offset(), reason=reason)
        where = (EXPERIENCE.name, message.partition(), message.offset())
        headers = tuple(message.headers() or ())
        source = Incoming(*where, 0, None, raw=message.value(), key=message.key(), headers=headers)
        topic, (key, value, kept) = message_of(Reject(source, reason), "learner")
        self._dead_letters.produce(self._names.full(topic), value, key, headers=kept)

    def _update(self, learner: Learner, *, overdue: bool) -> None:
        if self._settings.canary_alpha and self._rolled_back_by_canary(learner):
            return
        parent = learner.version
        began = time.perf_counter()
        report = learner.learn(overdue=overdue)
        metrics.UPDATE_SECONDS.observe(time.perf_counter() - began)
        self._waiting_since = None
        if report is not None:
            self._log(report)
            self._refused += not report.accepted
            if self._refused >= REFUSED:
                log.warning("releasing the same policy again, to keep what was read", updates=self._refused)
                learner.renumber()
            if report.accepted or self._refused >= REFUSED:
                self._release(learner, parent=parent)
        trim()

    def _rolled_back_by_canary(self, learner: Learner) -> bool:
        """Return to the reference if the versions after it earn less beyond doubt; return whether it did."""
        guard = self._release_guard
        found = guard.live_difference()
        if guard.worse(found):
            return self._roll_back(learner, found.reference, by="canary", reason=str(found))
        if guard.complete:
            log.info("released versions are no worse", version=learner.version, found=str(found))
            self._test_against_newest(learner)
        return False

    def _test_against_newest(self, learner: Learner) -> None:
        self._release_guard.begin(learner.version, learner.policy)
        self._releases.fallback = (learner.version, self._announced.checksum)

    def _obey(self, learner: Learner, ordered: PolicyCheckpoint) -> None:
        """Follow an operator's rollback, unless it is about a version that was rolled back already."""
        if ordered.version in self._release_guard.rolled_back or ordered.version > learner.version:
            return
        target = ordered.fallback_version if ordered.fallback_version is not None else ordered.parent_version
        if target is None:
            log.error("rollback ignored: there is no version to return to", version=ordered.version)
            return
        self._roll_back(learner, target, by="operator", reason=ordered.reason or f"ordered by {ordered.issued_by}")

    def _roll_back(self, learner: Learner, target: int, *, by: str, reason: str) -> bool:
        """Take back every version after `target` and release it again, under a new number; return whether it worked."""
        versions = range(target + 1, learner.version + 1)
        try:
            policy, _, state, digest = self._releases.read(target, learner.policy.config.blueprints)
        except PolicyError as error:
            log.error("rollback failed: no policy to return to", version=learner.version, to=target, error=str(error))
            self._test_against_newest(learner)
            return False
        log.warning("policy rolled back", version=learner.version, to=target, by=by, reason=reason)
        metrics.ROLLBACKS.labels(by).inc()
        if by == "canary":
            self._releases.roll_back(self._announced, (target, digest), reason)
        self._releases.fallback = (target, digest)
        self._release_guard.exclude(versions)
        self._release_guard.begin(target, policy)
        learner.resume_from(policy, state)
        self._waiting_since = None
        self._release(learner, parent=target)
        return True

    def _release(self, learner: Learner, *, parent: int | None) -> None:
        header = learner.header(
            name=self._settings.policy,
            offsets={str(number): offset for number, offset in sorted(self._experiences.positions.items())},
            time_ms=time.time_ns() // 1_000_000,
            parent=parent,
        ).model_copy(update={"release": self._release_guard.release_record()})
        # Rejected messages before these offsets are not read again: they must be dead-lettered by now.
        self._dead_letters.flush()
        self._announced = self._releases.release(header, learner.checkpoint(header))
        self._release_guard.released(learner.policy)
        self._refused = 0
        metrics.VERSION.set(learner.version)

    def _log(self, report: UpdateReport) -> None:
        metrics.UPDATES.labels("accepted" if report.accepted else "rolled_back").inc()
        metrics.show(report.metrics)
        fields = {"version": report.version, "fresh": report.fresh, "replayed": report.replayed}
        if report.accepted:
            log.info("policy updated", **fields, mean_reward=report.metrics.get("charts/mean_reward"))
        else:
            log.warning("update rolled back", **fields, reason=report.reason)
