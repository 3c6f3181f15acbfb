"""The learner without Kafka: takes experiences, keeps replay, updates the policy, counts everything."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from tamiyo.models.checkpoint import CheckpointHeader, save
from tamiyo.models.example import Example, ExperienceRejected
from tamiyo.models.hyperparameters import LearningSettings
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.models.replay import Replay
from tamiyo.models.update import Updater
from tamiyo.schemas.errors import UpdateRejected
from tamiyo.schemas.learning import Experience

REMEMBERED = 200_000  # experience ids whose newest revision is known, twice the replay
RECENT = 100  # experiences that mean reward and success rate are taken over


class Taken(StrEnum):
    """What became of an experience."""

    FRESH = "fresh"
    """Never seen, or now complete: counts towards an update."""
    REVISED = "revised"
    """A newer revision, but not the last word: replaces what is held, waits for its turn in replay."""
    REPEATED = "repeated"
    """This revision or a newer one came before."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One attempt to learn."""

    accepted: bool
    version: int
    """Of the policy in force afterwards."""
    fresh: int
    replayed: int
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    """Why it was rolled back."""


class Learner:
    """Learns one policy. An experience counts once per revision: a newer one replaces it, a repeat is dropped.

    Fresh is the first sight of an experience, and the revision that completes it; those set off updates. The ones
    between sharpen the reward of what replay holds.
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
        """Begin with a policy, or go on with a checkpoint's policy, counts and optimiser state.

        `newest` is the highest version ever given out, where that is not the checkpoint's: numbers are not used twice.
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
    def waiting(self) -> int:
        """Fresh experiences that no update has seen."""
        return len(self._fresh)

    def take(self, experience: Experience) -> Taken:
        """Take one experience, whatever it is; never raises for what is wrong with it."""
        return self._take(experience, count=True)

    def recall(self, experience: Experience) -> Taken:
        """Take an experience that the checkpoint has counted already: it fills replay and is not fresh."""
        return self._take(experience, count=False)

    def _take(self, experience: Experience, *, count: bool) -> Taken:
        revision, complete = self._known.get(experience.experience_id, (-1, False))
        if experience.revision <= revision:
            return self._tell(Taken.REPEATED, count)
        try:
            example = Example.of(experience, self.policy.kinds, self.policy.config.heads)
        except ExperienceRejected as rejection:
            if count:
                self.rejected[rejection.reason] += 1
            return self._tell(Taken.REJECTED, count)
        first = revision < 0
        self._known[example.experience_id] = (example.revision, example.complete)
        self._known.move_to_end(example.experience_id)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if not count:
            self._remember([example])
            return self._tell(Taken.FRESH, count)
        self.experiences += first
        if first or (example.complete and not complete) or example.experience_id in self._fresh:
            self._fresh[example.experience_id] = example
        else:
            self._remember([example])
            return self._tell(Taken.REVISED, count)
        return self._tell(Taken.FRESH, count)

    def _tell(self, what: Taken, count: bool) -> Taken:
        if count:
            self.taken[what] += 1
        return what

    def _remember(self, examples: list[Example]) -> None:
        """Put examples into replay, except those of policies too old."""
        for example in examples:
            if self.version - example.policy_version <= self.settings.max_age:
                self.replay.add(example, example.reward - example.value)

    def ready(self, *, overdue: bool = False) -> bool:
        """Return whether there is enough to learn from; `overdue`: some have waited too long for a whole batch."""
        if len(self._fresh) >= self.settings.fresh_batch:
            return True
        return overdue and bool(self._fresh) and len(self._fresh) + len(self.replay) >= self.settings.minimum_batch

    def learn(self, experiences: Iterable[Experience] = (), *, overdue: bool = False) -> UpdateReport | None:
        """Take `experiences`; update if there is enough to learn from, else return None.

        An update sees all fresh experiences, filled up from replay. One that must not act is rolled back: the
        incumbent stays, its experiences stay in replay.
        """
        for experience in experiences:
            self.take(experience)
        if not self.ready(overdue=overdue):
            return None
        fresh = list(self._fresh.values())
        # Before anything is learned from them: afterwards the ensemble has seen the answers.
        prediction = self._updater.predict(fresh)
        rewards = np.array([example.reward for example in fresh])
        errors = np.abs(prediction.reward - rewards)
        covered = errors <= self.policy.calibration.half_width(prediction.spread)
        self.policy.calibration = self.policy.calibration.update(prediction.reward, prediction.spread, rewards)
        self._note(fresh)

        # Restarted or not, the same update of the same experiences draws the same ones.
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
            update = self._updater.update(examples, [*np.ones(len(fresh)), *corrections], version=self.version, rng=rng)
        except UpdateRejected as rejection:
            self.rolled_back += 1
            self._remember(fresh)
            self.last = UpdateReport(False, self.version, len(fresh), len(replayed), calibration, str(rejection))
            return self.last
        self._newest += 1
        self.version = self._newest
        self.updates += 1
        self._remember(fresh)
        self.replay.reprioritise(examples, update.advantages)
        self.last = UpdateReport(
            True, self.version, len(fresh), len(replayed), {**update.metrics, **calibration, **self.statistics()}
        )
        return self.last

    def renumber(self) -> None:
        """Give the policy in force a version of its own: it is to act, and the number it had is another's."""
        self._newest += 1
        self.version = self._newest

    def _note(self, fresh: list[Example]) -> None:
        self._episodes += sum(example.complete for example in fresh)
        self._rewards.extend(example.reward for example in fresh)
        self._successes.extend(example.success for example in fresh if example.success is not None)

    def statistics(self) -> dict[str, float]:
        """Return what the specification asks a learner to know of itself, over the recent experiences.

        An episode is one decision with its whole reward; success is that of executed adaptations.
        """
        found = {
            "charts/episodes": float(self._episodes),
            "charts/replay": float(len(self.replay)),
            "charts/experiences": float(self.experiences),
            "charts/rolled_back": float(self.rolled_back),
        }
        if self._rewards:
            found["charts/mean_reward"] = float(np.mean(self._rewards))
        if self._successes:
            found["charts/success_rate"] = float(np.mean(self._successes))
        return found

    def header(self, *, name: str, offsets: Mapping[str, int], time_ms: int, parent: int | None) -> CheckpointHeader:
        """Return the header of the policy in force."""
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
        """Return the checkpoint's bytes: policy, optimiser and proximal average together."""
        return save(self.policy, self._updater.state(), header)
