"""One decision and what became of it, in little memory."""

import math
from dataclasses import dataclass, field
from typing import Any

from tamiyo.schemas.adaptation import (
    Action,
    AdaptationDecision,
    AdaptationOutcome,
    CompiledKernel,
    DecisionType,
    KernelStatus,
    OutcomeStatus,
)
from tamiyo.schemas.learning import RewardAnalysis

MAX_REVISIONS = 32  # of a reward; a stage publishes one a span


@dataclass(frozen=True, slots=True)
class Decided:
    """The facts of a decision that a table of decisions shows."""

    time_ms: int
    """When the installation knew it."""
    step: int
    event_ms: int
    type: str
    layer_id: str | None
    blueprint: str | None
    kernel_id: str | None
    proposed: Action
    vetoed_by: tuple[str, ...]
    dry_run: bool
    confidence: float
    uncertainty: float
    urgency: float
    predicted_reward: float
    policy_version: int
    method: str

    @classmethod
    def of(cls, record: AdaptationDecision, time_ms: int) -> "Decided":
        """Return the facts of a decision."""
        return cls(
            time_ms, record.step, record.time_ms, record.type, record.layer_id, record.blueprint, record.kernel_id,
            record.proposed, tuple(veto.by for veto in record.vetoes), record.dry_run, record.confidence,
            record.uncertainty, record.urgency, record.predicted_reward, record.policy_version, record.method,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compiled:
    """The kernel that a decision requested."""

    time_ms: int
    layer_id: str
    blueprint: str
    refused: bool
    reason: str
    parameters: int
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Handled:
    """What the host did with a decision."""

    time_ms: int
    step: int
    type: str
    layer_id: str | None
    kernel_id: str | None
    status: str
    reason: str
    raw: bytes | None


@dataclass(slots=True)
class Rewarded:
    """One revision of a decision's reward."""

    time_ms: int
    revision: int
    total: float
    worth: float | None
    worth_half_width: float | None
    complete: bool
    raw: bytes | None


@dataclass(frozen=True, slots=True)
class Share:
    """What one decision contributes to the totals of its run and of its policy's version."""

    version: int = -1
    """-1: the decision is not known."""
    decisions: int = 0
    executed: int = 0
    vetoed: int = 0
    reward: float | None = None
    worth: float | None = None
    confidence: float = 0.0


NOTHING = Share()


@dataclass(slots=True, eq=False)
class DecisionHistory:
    """A decision with its kernel, outcome and rewards, which may arrive in any order."""

    run_id: str
    decision_id: str
    revision: int = 0
    decided: Decided | None = None
    raw: bytes | None = None
    """The decision's message; None once the details are dropped."""
    details: bool = True
    kernel: Compiled | None = None
    handled: Handled | None = None
    rewards: list[Rewarded] = field(default_factory=list)
    """By revision, the highest last."""
    share: Share = NOTHING
    """What its run's totals contain of it."""

    def take_decision(self, record: AdaptationDecision, time_ms: int, raw: bytes | None) -> bool:
        """Take the decision; return whether it is news: a restarted stage may publish it again."""
        if self.decided is not None:
            return False
        self.decided = Decided.of(record, time_ms)
        self.raw = raw if self.details else None
        return True

    def take_kernel(self, record: CompiledKernel, time_ms: int, raw: bytes | None) -> bool:
        """Take the result of the kernel request."""
        if self.kernel is not None:
            return False
        refused = record.status == KernelStatus.REFUSED
        self.kernel = Compiled(
            time_ms, record.layer_id, record.blueprint, refused, record.reason, record.parameters, raw
        )
        return True

    def take_outcome(self, record: AdaptationOutcome, time_ms: int, raw: bytes | None) -> bool:
        """Take the outcome."""
        if self.handled is not None:
            return False
        self.handled = Handled(
            time_ms, record.step, record.type, record.layer_id, record.kernel_id, record.status.value, record.reason,
            raw,
        )  # fmt: skip
        return True

    def take_reward(self, record: RewardAnalysis, time_ms: int, raw: bytes | None) -> bool:
        """Take a revision of the reward."""
        if any(each.revision == record.revision for each in self.rewards):
            return False
        taken = Rewarded(
            time_ms, record.revision, record.total, record.worth, record.worth_half_width, record.complete, raw
        )
        self.rewards = sorted([*self.rewards, taken], key=lambda each: each.revision)[-MAX_REVISIONS:]
        if not self.details:
            self._drop_earlier_rewards()
        return True

    def drop_details(self) -> None:
        """Keep what tables show, the outcome and the newest reward."""
        self.details, self.raw = False, None
        self._drop_earlier_rewards()

    def _drop_earlier_rewards(self) -> None:
        for each in self.rewards[:-1]:
            each.raw = None

    def known(self, at_ms: int | None) -> Decided | None:
        """Return the decision if it was known at a time."""
        return self.decided if self.decided is not None and _by(self.decided, at_ms) else None

    def kernel_at(self, at_ms: int | None) -> Compiled | None:
        """Return the kernel if it was known at a time."""
        return self.kernel if self.kernel is not None and _by(self.kernel, at_ms) else None

    def outcome_at(self, at_ms: int | None) -> Handled | None:
        """Return the outcome if it was known at a time."""
        return self.handled if self.handled is not None and _by(self.handled, at_ms) else None

    def reward_at(self, at_ms: int | None) -> Rewarded | None:
        """Return the highest revision of the reward known at a time."""
        return next((each for each in reversed(self.rewards) if _by(each, at_ms)), None)

    def executed(self, at_ms: int | None = None) -> Handled | None:
        """Return the outcome if it was executed, and known at a time."""
        handled = self.outcome_at(at_ms)
        return handled if handled is not None and handled.status == OutcomeStatus.EXECUTED.value else None

    def share_at(self, at_ms: int | None = None) -> Share:
        """Return what it contributes to totals as of a time."""
        decided = self.known(at_ms)
        if decided is None:
            return NOTHING
        executed = self.executed(at_ms) is not None and decided.type != DecisionType.NO_OP.value
        reward = self.reward_at(at_ms)
        return Share(
            version=decided.policy_version,
            decisions=1,
            executed=int(executed),
            vetoed=int(bool(decided.vetoed_by)),
            reward=reward.total if reward is not None and executed else None,
            worth=reward.worth if reward is not None else None,
            confidence=decided.confidence,
        )


@dataclass(slots=True)
class Totals:
    """Sums over decisions."""

    decisions: int = 0
    executed: int = 0
    vetoed: int = 0
    rewarded: int = 0
    """Executed adaptations with a reward."""
    reward: float = 0.0
    reward_squares: float = 0.0
    valued: int = 0
    """Decisions with a worth."""
    worth: float = 0.0
    adapted: int = 0
    """Executed adaptations with a worth."""
    adapted_worth: float = 0.0
    confidence: float = 0.0
    revision: int = 0

    def add(self, share: Share, sign: int = 1) -> None:
        """Add a decision's share, or remove it with sign -1."""
        self.decisions += sign * share.decisions
        self.executed += sign * share.executed
        self.vetoed += sign * share.vetoed
        self.confidence += sign * share.confidence
        if share.reward is not None:
            self.rewarded += sign
            self.reward += sign * share.reward
            self.reward_squares += sign * share.reward**2
        if share.worth is not None:
            self.valued += sign
            self.worth += sign * share.worth
            if share.executed:
                self.adapted += sign
                self.adapted_worth += sign * share.worth

    @property
    def mean_reward(self) -> float | None:
        """Mean reward of executed adaptations."""
        return self.reward / self.rewarded if self.rewarded else None

    @property
    def reward_half_width(self) -> float | None:
        """Half of the 95 % interval of the mean reward, by the normal distribution; None below two rewards."""
        if self.rewarded < 2:
            return None
        mean = self.reward / self.rewarded
        variance = max(0.0, self.reward_squares - self.rewarded * mean * mean) / (self.rewarded - 1)
        return 1.96 * math.sqrt(variance / self.rewarded)

    @property
    def mean_worth(self) -> float | None:
        """Mean worth of executed adaptations, nats."""
        return self.adapted_worth / self.adapted if self.adapted else None

    @property
    def mean_confidence(self) -> float | None:
        """Mean confidence of all decisions."""
        return self.confidence / self.decisions if self.decisions else None


def _by(known: Any, at_ms: int | None) -> bool:
    return at_ms is None or known.time_ms <= at_ms
