"""Logs of a bandit over real graphs: every policy's true value is known, and decisions of a run share an offset."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from tamiyo.evaluation.lab.bandit import BLUEPRINTS, GrowthBandit
from tamiyo.evaluation.lab.baselines import sampled
from tamiyo.evaluation.offline.decisions import LoggedDecision, logged_decisions
from tamiyo.evaluation.offline.policies import target_policy
from tamiyo.models.heuristic import baseline_distribution
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.codec import encode
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.topics import EXPERIENCE
from tamiyo.streams.messages import Message
from tests.support.recordings import message

NODES = 3
UNIFORM_SHARE = 0.5
POPULATION = range(10**6, 10**6 + 2_000)

bandit = GrowthBandit(5, nodes=NODES, noise=0.1)


def untrained_policy(**fields: object) -> TamiyoPolicy:
    """Return a policy over the bandit's actions."""
    return TamiyoPolicy(PolicyConfig(**{"blueprints": BLUEPRINTS, "hidden": 8, "layers": 1, **fields})).eval()


def logging_probabilities(index: int, uniform: float = UNIFORM_SHARE) -> np.ndarray:
    """Return what made the decisions of a log: the heuristic, mixed with all legal actions alike."""
    context = bandit.round(index)
    heuristic = baseline_distribution(context.graph, bandit.kinds, context.mask)
    mixed = (1 - uniform) * heuristic + uniform * context.mask / context.mask.sum()
    return mixed.astype(np.float32)


def logged_experience(index: int, run: int, offset: float = 0.0, uniform: float = UNIFORM_SHARE) -> Experience:
    """Return the experience of round `index` in run `run`, whose rewards are all higher by `offset`."""
    choice = sampled(logging_probabilities(index, uniform), seed=index)
    experience = bandit.experience(index, choice, policy_version=0)
    reward = float(np.clip(experience.reward + offset, -1, 1))
    return experience.model_copy(update={"run_id": f"run-{run}", "reward": reward})


@lru_cache(maxsize=8)
def planted_log(
    runs: int = 40, decisions: int = 20, *, first: int = 0, uniform: float = UNIFORM_SHARE, spread: float = 0.05
) -> tuple[Experience, ...]:
    """Return a log of `runs` runs from round `first` on, with run offsets of that standard deviation."""
    offsets = np.random.default_rng(first).normal(0.0, spread, runs)
    return tuple(
        logged_experience(first + run * decisions + number, run, offsets[run], uniform)
        for run in range(runs)
        for number in range(decisions)
    )


def under(experiences: Iterable[Experience], *policies: str) -> list[LoggedDecision]:
    """Return the decisions of a log with the distributions of policies, all of them."""
    found, left_out = logged_decisions(experiences, [target_policy(each) for each in policies])
    assert not left_out
    return found


@lru_cache(maxsize=4)
def true_value(policy: str) -> float:
    """Return the expected reward per decision of `heuristic`, `never` or `logged`."""
    return float(np.mean([_expected(policy, index) for index in POPULATION]))


def _expected(policy: str, index: int) -> float:
    context = bandit.round(index)
    if policy == "never":
        return float(context.expected[0])
    if policy == "logged":
        return float(logging_probabilities(index) @ context.expected)
    return float(baseline_distribution(context.graph, bandit.kinds, context.mask) @ context.expected)


def recorded(experiences: Sequence[Experience]) -> list[Message]:
    """Return experiences as messages of two partitions."""
    found: dict[int, list[Message]] = {0: [], 1: []}
    for each in experiences:
        partition = sum(each.run_id.encode()) % 2
        offset = len(found[partition])
        found[partition].append(
            message(EXPERIENCE.name, offset, encode(each), partition=partition, key=each.run_id.encode())
        )
    return [*found[0], *found[1]]
