"""Credit over the run: what a decision led to, not only what it was rewarded for.

Decisions of a run share its budget and its cooldowns, and change the network that later ones find. So a decision's
return is the rewards from it to the run's end, no_op included, estimated by generalised advantages: Schulman et al.,
"High-dimensional continuous control using generalized advantage estimation" (2016). Rewards add up over a run, so by
default nothing is discounted.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from tamiyo.models.learning.example import Example


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the return of this decision and of those before it depends on."""

    step: int
    name: str
    revision: int
    reward: float
    value: float
    final: bool


@dataclass(slots=True)
class _Run:
    decisions: dict[str, _Decision] = field(default_factory=dict)
    returns: dict[str, float] | None = None
    """By experience id; None: to be computed again."""


class RunCredit:
    """The decisions of recent runs in their order, and the return of each.

    Example:
        >>> credit = RunCredit(gamma=1.0, gae_lambda=1.0)
        >>> decision = Example.of(experience, experience.kinds, heads=5)
        >>> credit.add(decision)
        >>> credit.of(decision) == decision.reward + decision.value  # the only one known of a run that goes on
        True
    """

    def __init__(self, *, gamma: float = 1.0, gae_lambda: float = 0.95, capacity: int = 100_000) -> None:
        """Start without any run.

        Args:
            gamma: Discount of the decisions after one; 0 credits a decision with its own reward alone, as a bandit.
            gae_lambda: 1 takes all later rewards as they came, 0 the value of the next decision in their place.
            capacity: Most decisions kept; the run whose last decision came longest ago is dropped first.
        """
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self._capacity = capacity
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, example: Example) -> None:
        """Add a decision, or a newer revision of its reward.

        Args:
            example: The decision with its reward.
        """
        name = example.experience_id
        run = self._runs.setdefault(example.run_id, _Run())
        known = run.decisions.get(name)
        if known is not None and known.revision >= example.revision:
            return
        self._count += known is None
        run.decisions[name] = _Decision(
            example.step, name, example.revision, example.reward, example.value, example.final
        )
        run.returns = None
        self._runs.move_to_end(example.run_id)
        while self._count > self._capacity and len(self._runs) > 1:
            _, dropped = self._runs.popitem(last=False)
            self._count -= len(dropped.decisions)

    def of(self, example: Example) -> float:
        """Return the return of a decision: the rewards from it on, as far as they are known.

        The last decision of a run that goes on counts for what it was rewarded, as if nothing else would come: its
        return is the reward plus the value that the run had before it.

        Args:
            example: The decision; if its run was dropped, its own reward counts alone.
        """
        run = self._runs.get(example.run_id)
        if run is None or example.experience_id not in run.decisions:
            return example.reward
        if run.returns is None:
            run.returns = self._returns(run)
        return run.returns[example.experience_id]

    def _returns(self, run: _Run) -> dict[str, float]:
        """Return the lambda-return of every decision: G = r + gamma ((1 - lambda) V' + lambda G')."""
        found: dict[str, float] = {}
        following: _Decision | None = None
        return_ = 0.0
        for decision in sorted(run.decisions.values(), key=lambda each: (each.step, each.name), reverse=True):
            if following is None:
                ahead = 0.0 if decision.final else decision.value
            else:
                ahead = (1 - self.gae_lambda) * following.value + self.gae_lambda * return_
            return_ = decision.reward + self.gamma * ahead
            found[decision.name] = return_
            following = decision
        return found
