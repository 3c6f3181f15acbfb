"""The learner without Kafka: collects experiences, keeps replay, updates the policy and counts."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tamiyo.models.checkpoint import CheckpointHeader, save
from tamiyo.models.learning.credit import RunCredit
from tamiyo.models.learning.example import Example, ExperienceRejected
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.replay import Replay
from tamiyo.models.learning.update import Updater
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.errors import UpdateRejected
from tamiyo.schemas.learning import Experience

KNOWN_IDS = 200_000  # experience ids whose newest revision is known, twice the replay
RECENT = 100  # experiences that mean reward and success rate cover


class Taken(StrEnum):
    """How an experience was used."""

    FRESH = "fresh"
    """The first revision of an experience, or the one that completes it: counts towards an update."""
    REVISED = "revised"
    """A newer revision that is not the last: replaces the older one in replay."""
    REPEATED = "repeated"
    """This revision or a newer one is known already."""
    REJECTED = "rejected"
    """The experience does not fit the policy, or contradicts itself."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One attempt to update the policy."""

    accepted: bool
    version: int
    """Version of the policy in force afterwards."""
    fresh: int
    """Fresh experiences in the batch."""
    replayed: int
    """Experiences drawn from replay."""
    metrics: dict[str, float] = field(default_factory=dict)
    """losses/... and charts/..., named as in cleanrl."""
    reason: str = ""
    """Why the update was rolled back; empty if it was accepted."""


class Learner:
    """Learns one policy. Each revision of an experience counts once: a newer one replaces it, a repeat is dropped.

    The first revision of an experience and the one that completes it are fresh: they trigger updates. The revisions
    between them refine the reward of the experience in replay.

    Example:
        >>> from tamiyo.models.policy import PolicyConfig
        >>> policy = TamiyoPolicy(PolicyConfig(blueprints=("parallel_expansion", "low_rank"), hidden=8, layers=1))
        >>> learner = Learner(policy, LearningSettings(fresh_batch=1, minimum_batch=1, update_epochs=1))
        >>> learner.take(experience)
        <Taken.FRESH: 'fresh'>
        >>> report = learner.learn()
        >>> report.accepted, learner.version, learner.take(experience)
        (True, 1, <Taken.REPEATED: 'repeated'>)
    """

    def __init__(
        self,
        policy: TamiyoPolicy,
        settings: LearningSettings | None = None,
        *,
        version: int = 0,
        newest: int = 0,
        experiences: int = 0,
        updates: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Start with a new policy, or resume from a checkpoint.

        Args:
            policy: The policy to learn.
            settings: Hyperparameters.
            version: Version of `policy`, >= 0.
            newest: Highest version ever released, if it is above `version`: no number is used twice.
            experiences: Experiences learned from before, from the checkpoint's header.
            updates: Updates accepted before, from the checkpoint's header.
            state: Optimiser and proximal policy, from the checkpoint; None starts anew.

        Raises:
            PolicyError: `state` does not fit `policy`.
        """
        self.settings = settings or LearningSettings()
        self.version = version
        self._newest = max(version, newest)
        self.experiences = experiences
        self.updates = updates
        self.rolled_back = 0
        self.rejected: Counter[str] = Counter()
        self.taken: Counter[Taken] = Counter()
        self.last: UpdateReport | None = None
        self.replay = Replay(
            self.settings.replay_capacity,
            exponent=self.settings.replay_exponent,
            correction=self.settings.replay_correction,
        )
        self._credit = RunCredit(
            gamma=self.settings.gamma, gae_lambda=self.settings.gae_lambda, capacity=self.settings.replay_capacity
        )
        self.check: Callable[[TamiyoPolicy], None] | None = None
        """Raises UpdateRejected if an updated policy must not be released; the update is then rolled back."""
        self._updater = Updater(policy, self.settings, dict(state) if state is not None else None)
        self._fresh: dict[str, Example] = {}
        self._known: OrderedDict[str, tuple[int, bool]] = OrderedDict()  # id to (revision, complete)
        self._episodes = 0
        self._rewards: deque[float] = deque(maxlen=RECENT)
        self._successes: deque[bool] = deque(maxlen=RECENT)

    @property
    def policy(self) -> TamiyoPolicy:
        """The policy in force, in eval mode."""
        return self._updater.policy

    @property
    def warming_up(self) -> bool:
        """Whether only value and reward heads learn yet: those of a policy from the laboratory know other rewards."""
        return self.policy.config.heuristic_weight == 0 and self.updates < self.settings.warm_up

    @property
    def waiting(self) -> int:
        """Number of fresh experiences that no update has used."""
        return len(self._fresh)

    def take(self, experience: Experience) -> Taken:
        """Take one experience.

        Args:
            experience: Any experience; an invalid one is counted and rejected, never an error.

        Returns:
            How it is used.
        """
        return self._take(experience, count=True)

    def restore_experience(self, experience: Experience) -> Taken:
        """Take an experience that the checkpoint has counted already: it goes to replay and triggers no update.

        Args:
            experience: An experience from before the checkpoint's offsets.

        Returns:
            As for `take`; nothing is counted.
        """
        return self._take(experience, count=False)

    def _take(self, experience: Experience, *, count: bool) -> Taken:
        revision, complete = self._known.get(experience.experience_id, (-1, False))
        if experience.revision <= revision:
            return self._count(Taken.REPEATED, count)
        try:
            example = Example.of(experience, self.policy.kinds, self.policy.config.heads)
        except ExperienceRejected as rejection:
            if count:
                self.rejected[rejection.reason] += 1
            return self._count(Taken.REJECTED, count)
        self._credit.add(example)
        first = revision < 0
        self._known[example.experience_id] = (example.revision, example.complete)
        self._known.move_to_end(example.experience_id)
        while len(self._known) > KNOWN_IDS:
            self._known.popitem(last=False)
        if not count:
            self._replay([example])
            return Taken.FRESH
        self.experiences += first
        if first or (example.complete and not complete) or example.experience_id in self._fresh:
            self._fresh[example.experience_id] = example
        else:
            self._replay([example])
            return self._count(Taken.REVISED, count)
        return self._count(Taken.FRESH, count)

    def _count(self, taken: Taken, count: bool) -> Taken:
        if count:
            self.taken[taken] += 1
        return taken

    def _replay(self, examples: list[Example]) -> None:
        """Add examples to replay, except those of too old policies."""
        for example in examples:
            if self.version - example.policy_version <= self.settings.max_age:
                self.replay.add(example, self._credit.of(example) - example.value)

    def ready(self, *, overdue: bool = False) -> bool:
        """Return whether there is enough to learn from.

        Args:
            overdue: Whether a fresh experience has waited so long that an incomplete batch is enough.
        """
        if len(self._fresh) >= self.settings.fresh_batch:
            return True
        return overdue and bool(self._fresh) and len(self._fresh) + len(self.replay) >= self.settings.minimum_batch

    def learn(self, experiences: Iterable[Experience] = (), *, overdue: bool = False) -> UpdateReport | None:
        """Take experiences, and update the policy if there is enough to learn from.

        An update uses all fresh experiences, and others from replay up to the batch size. An update that fails its
        checks is rolled back: the policy stays as it was, and the experiences go to replay.

        Args:
            experiences: Experiences to take first.
            overdue: As for `ready`.

        Returns:
            The report of the update, or None if there was too little to learn from.
        """
        for experience in experiences:
            self.take(experience)
        if not self.ready(overdue=overdue):
            return None
        fresh = list(self._fresh.values())
        # Predict before learning: afterwards the ensemble has seen these rewards.
        prediction = self._updater.predict(fresh)
        rewards = np.array([example.reward for example in fresh])
        errors = np.abs(prediction.reward - rewards)
        covered = errors <= self.policy.calibration.half_width(prediction.spread)
        self.policy.calibration = self.policy.calibration.update(prediction.reward, prediction.spread, rewards)
        self._record(fresh)

        # After a restart, the same update of the same experiences draws the same ones from replay.
        rng = np.random.default_rng([self.settings.seed, self.updates, self.rolled_back])
        self.replay.expire(self.version - self.settings.max_age)
        replayed, corrections = self.replay.sample(
            self.settings.batch_size - len(fresh), rng, exclude=self._fresh.keys()
        )
        examples = [*fresh, *replayed]
        self._fresh = {}
        calibration = {
            "charts/prediction_error": float(errors.mean()),
            "charts/coverage": float(covered.mean()),
            "charts/half_width_multiplier": self.policy.calibration.multiplier,
        }
        try:
            update = self._updater.update(
                examples,
                [*np.ones(len(fresh)), *corrections],
                [self._credit.of(each) for each in examples],
                version=self.version,
                rng=rng,
                critics_only=self.warming_up,
                check=self.check,
            )
        except UpdateRejected as rejection:
            self.rolled_back += 1
            self._replay(fresh)
            self.last = UpdateReport(False, self.version, len(fresh), len(replayed), calibration, str(rejection))
            return self.last
        self._newest += 1
        self.version = self._newest
        self.updates += 1
        self._replay(fresh)
        self.replay.reprioritise(examples, update.advantages)
        self.last = UpdateReport(
            True, self.version, len(fresh), len(replayed), {**update.metrics, **calibration, **self.statistics()}
        )
        return self.last

    def renumber(self) -> None:
        """Give the policy in force the next unused version, because another policy has its present number."""
        self._newest += 1
        self.version = self._newest

    def example(self, experience_id: str) -> Example | None:
        """Return what is known of an experience, waiting or in replay; None if nothing is.

        Args:
            experience_id: The experience's id.
        """
        return self._fresh.get(experience_id) or self.replay.get(experience_id)

    def return_of(self, example: Example) -> float:
        """Return the rewards from a decision to the end of its run, as far as they are known.

        Args:
            example: The decision.
        """
        return self._credit.of(example)

    def skip_update(self) -> None:
        """Move the fresh experiences to replay without an update, as an update that was rolled back does."""
        self._replay(list(self._fresh.values()))
        self._fresh = {}

    def resume_from(self, policy: TamiyoPolicy, state: Mapping[str, Any] | None) -> None:
        """Go on from an earlier checkpoint, under the next unused version.

        Everything read so far counts as read and stays in replay: no experience is learned from twice.

        Args:
            policy: The checkpoint's policy.
            state: Optimiser and proximal policy, from the checkpoint; None starts anew.

        Raises:
            PolicyError: `state` does not fit `policy`.
        """
        self.skip_update()
        self._updater = Updater(policy, self.settings, dict(state) if state is not None else None)
        self.rolled_back += 1
        self.last = None
        self.renumber()

    def _record(self, fresh: list[Example]) -> None:
        """Add fresh examples to the statistics."""
        self._episodes += sum(example.complete for example in fresh)
        self._rewards.extend(example.reward for example in fresh)
        self._successes.extend(example.success for example in fresh if example.success is not None)

    def statistics(self) -> dict[str, float]:
        """Return the specification's learning statistics, over the last RECENT experiences.

        Returns:
            charts/... by name. An episode is one decision with its complete reward; the success rate covers executed
            adaptations. A mean without any experience is left out.
        """
        values = {
            "charts/episodes": float(self._episodes),
            "charts/replay": float(len(self.replay)),
            "charts/experiences": float(self.experiences),
            "charts/rolled_back": float(self.rolled_back),
        }
        if self._rewards:
            values["charts/mean_reward"] = float(np.mean(self._rewards))
        if self._successes:
            values["charts/success_rate"] = float(np.mean(self._successes))
        return values

    def header(self, *, name: str, offsets: Mapping[str, int], time_ms: int, parent: int | None) -> CheckpointHeader:
        """Return the checkpoint header of the policy in force.

        Args:
            name: The policy's name.
            offsets: Next offset of the experience topic, by partition.
            time_ms: When the checkpoint is made, ms since the epoch, UTC.
            parent: Version the policy was learned from; None for the first.
        """
        return CheckpointHeader.of(
            self.policy,
            version=self.version,
            name=name,
            parent_version=parent,
            time_ms=time_ms,
            offsets=dict(offsets),
            experiences=self.experiences,
            updates=self.updates,
            metrics=self.last.metrics if self.last is not None and self.last.accepted else {},
        )

    def checkpoint(self, header: CheckpointHeader) -> bytes:
        """Return the checkpoint's bytes: policy, optimiser and proximal policy together.

        Args:
            header: From `header`.

        Raises:
            PolicyError: A weight is not finite.
        """
        return save(self.policy, self._updater.state(), header)
