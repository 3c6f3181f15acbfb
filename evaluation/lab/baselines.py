"""Policies to compare with, behind one protocol: never, the heuristic, simple rules, and three that try to cheat."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tamiyo.host.blueprints import names as blueprint_names
from tamiyo.models.actions import kinds as action_kinds
from tamiyo.models.actions import to_action
from tamiyo.models.behaviour import Choice, choose, draw, entropy_of
from tamiyo.models.builtin import initial_policy
from tamiyo.models.checkpoint import load
from tamiyo.models.features import global_value, node_column
from tamiyo.models.heuristic import baseline_distribution, baseline_logits
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import ConfigurationError, PolicyError

Mask = npt.NDArray[np.bool_]


class Baseline(Protocol):
    """What decides on graphs."""

    @property
    def version(self) -> int:
        """Version recorded with its decisions."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action at one layer, in the order of the action list."""

    def choose(self, graph: ModelGraph, mask: Mask, *, seed: int) -> Choice:
        """Choose one of the legal actions; a pure function of its arguments."""


def certain(index: int, mask: Mask) -> Choice:
    """Return the choice of action `index` with probability 1."""
    return sampled(np.eye(len(mask), dtype=np.float32)[index], seed=0)


def sampled(probabilities: npt.NDArray[np.float32], *, seed: int) -> Choice:
    """Return an action sampled from `probabilities` [actions]."""
    index = draw(probabilities, seed)
    return Choice(
        index=index,
        probabilities=probabilities,
        log_probability=float(np.log(probabilities[index])),
        entropy=entropy_of(probabilities),
        uncertainty=0.0,
        predicted_reward=0.0,
        value=0.0,
        method="baseline",
        temperature=1.0,
    )


class _Rule:
    """A baseline whose choice is a function of the graph."""

    version = 0

    def __init__(self) -> None:
        self.kinds = action_kinds(blueprint_names())

    def choose(self, graph: ModelGraph, mask: Mask, *, seed: int) -> Choice:
        """Choose the action that `_index` returns."""
        return certain(self._index(graph, mask, seed), mask)

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        raise NotImplementedError

    def _legal(self, graph: ModelGraph, mask: Mask, kind: DecisionType) -> list[int]:
        """Return the legal actions of a kind."""
        return [i for i in np.flatnonzero(mask).tolist() if to_action(i, graph.layer_id, self.kinds).type == kind]


class Never(_Rule):
    """Never adapts: every gain is relative to this."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        return 0


class Heuristic(_Rule):
    """The heuristic that an untrained policy follows, sampled as in production."""

    def likeliest(self, graph: ModelGraph, mask: Mask) -> int:
        """Return the legal load that it prefers, even where it would rather wait; 0 if none is legal."""
        logits = np.where(mask, baseline_logits(graph, self.kinds, mask), -np.inf)
        loads = self._legal(graph, mask, DecisionType.LOAD_KERNEL)
        return max(loads, key=lambda index: float(logits[index]), default=0)

    def choose(self, graph: ModelGraph, mask: Mask, *, seed: int) -> Choice:
        """Sample from the heuristic's distribution."""
        return sampled(baseline_distribution(graph, self.kinds, mask), seed=seed)


class Random(_Rule):
    """Adapts at random: every kind of action alike, then every legal action of that kind.

    Args:
        rate: Probability of an adaptation at a graph, in 0..1.
    """

    def __init__(self, rate: float = 0.15) -> None:
        super().__init__()
        self.rate = rate

    def choose(self, graph: ModelGraph, mask: Mask, *, seed: int) -> Choice:
        """Sample an action; loads weigh as much as all other kinds together."""
        probabilities = np.zeros(len(mask))
        weights = {
            DecisionType.LOAD_KERNEL: 0.7,
            DecisionType.UNLOAD_KERNEL: 0.15,
            DecisionType.FOSSILIZE_KERNEL: 0.05,
            DecisionType.OPTIMIZE_PARAMETERS: 0.1,
        }
        legal = {kind: found for kind in weights if (found := self._legal(graph, mask, kind))}
        total = sum(weights[kind] for kind in legal)
        for kind, found in legal.items():
            probabilities[found] = self.rate * weights[kind] / total / len(found)
        probabilities[0] = 1.0 - probabilities.sum()
        return sampled(probabilities.astype(np.float32), seed=seed)


class Pump(_Rule):
    """Loads the most promising kernel, unloads it, and loads it again, as often as the cooldown allows."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        unloads = self._legal(graph, mask, DecisionType.UNLOAD_KERNEL)
        return unloads[0] if unloads else _best(graph, mask, self, 1.0)


class AtOnce(_Rule):
    """Grows as early and as much as the limits allow, the largest kernels first."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        return _best(graph, mask, self, 1.0)


class Cheapest(_Rule):
    """Spends the budget on the smallest kernels."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        return _best(graph, mask, self, -1.0)


class GreedyGrowth(_Rule):
    """Grows wherever it may, the layer with the highest growth score first, as fast as the cooldown allows."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        return self._by_growth(graph, mask)

    def _by_growth(self, graph: ModelGraph, mask: Mask) -> int:
        """Return the load of the largest kernel at the layer with the highest growth score; 0 if none is legal."""
        scores = node_column(graph, "growth_share")
        found: list[tuple[float, int, int]] = []
        for index in self._legal(graph, mask, DecisionType.LOAD_KERNEL):
            action = to_action(index, graph.layer_id, self.kinds)
            node = graph.layer_id.index(action.layer_id or "")
            size = next(offer.parameters for offer in graph.offers[node] if offer.name == action.blueprint)
            found.append((float(scores[node]), size, -index))
        return -max(found)[2] if found else 0


class Periodic(GreedyGrowth):
    """Grows every 200 steps."""

    STEPS = 200

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        since = graph.steps_since_adaptation
        due = graph.step if since is None else since
        return self._by_growth(graph, mask) if due >= self.STEPS else 0


class Plateau(GreedyGrowth):
    """Grows when the validation loss has stopped falling: by less than 1 % a window."""

    FALL = -0.1  # the feature is ten times the relative slope

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        measured = global_value(graph, "validation_measured") > 0 and graph.step >= Periodic.STEPS
        stalled = global_value(graph, "validation_loss_trend") > self.FALL
        return self._by_growth(graph, mask) if measured and stalled else 0


class GreedyCounterfactual(GreedyGrowth):
    """Grows on while every kernel lowers the loss by the host's own measurement, and unloads those that do not."""

    def _index(self, graph: ModelGraph, mask: Mask, seed: int) -> int:
        contributions, measured = node_column(graph, "contribution"), node_column(graph, "contribution_measured") > 0
        for index in self._legal(graph, mask, DecisionType.UNLOAD_KERNEL):
            node = graph.layer_id.index(to_action(index, graph.layer_id, self.kinds).layer_id or "")
            if measured[node] and contributions[node] <= 0:
                return index
        active = np.array(graph.active_seeds) > 0
        known_good = bool((measured & (contributions > 0))[active].all())
        return self._by_growth(graph, mask) if known_good else 0


class Learned:
    """A policy of `tamiyo.models`, fresh or from a checkpoint."""

    def __init__(self, policy: TamiyoPolicy | None = None, version: int = 0) -> None:
        self.policy = policy or TamiyoPolicy(PolicyConfig(blueprints=tuple(blueprint_names()))).eval()
        self.version = version

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action at one layer, in the order of the action list."""
        return self.policy.kinds

    def choose(self, graph: ModelGraph, mask: Mask, *, seed: int) -> Choice:
        """Sample as in production."""
        return choose(self.policy, graph, mask, seed=seed)


@lru_cache(maxsize=1)
def _builtin() -> Learned:
    """Return the policy that comes with the package."""
    return Learned(initial_policy("builtin", blueprint_names()))


NO_MESSAGE = -1e6
"""Added to every message before its ReLU: what is left is 0, as if the graph had no edges."""


@lru_cache(maxsize=1)
def _without_edges() -> Learned:
    """Return the policy that comes with the package, with the edges hidden from its network: an ablation.

    Its layers receive no messages, so each is judged by its own features and those of the whole. Nothing is fitted
    anew: a policy that was trained without edges might do better. Its fallback, the heuristic, still sees them.
    """
    policy = copy.deepcopy(_builtin().policy)
    with torch.no_grad():
        for layer in policy.convolutions:
            bias = layer.get_parameter("convolution.lin.bias")
            bias.fill_(NO_MESSAGE)
    return Learned(policy)


RATE = "random:"
LEARNED = "learned:"
STATICS = ("static", "static_wider")
"""Networks to compare with that decide nothing: see `statics`."""
GROMO = "gromo"
"""A library that grows a perceptron by itself: see `gromo_growth`."""

BASELINES: dict[str, Callable[[], Baseline]] = {
    "never": Never,
    "heuristic": Heuristic,
    "random": Random,
    "pump": Pump,
    "at_once": AtOnce,
    "cheapest": Cheapest,
    "periodic": Periodic,
    "plateau": Plateau,
    "greedy_growth": GreedyGrowth,
    "greedy_counterfactual": GreedyCounterfactual,
    "learned": Learned,
    "builtin": _builtin,
    "builtin_without_edges": _without_edges,
}


def baseline(name: str) -> Baseline:
    """Return a baseline by name; `random:0.3` is random traffic at that rate, `learned:FILE` a checkpoint.

    Raises ConfigurationError with the names that exist, or if the file is no checkpoint, or for what decides nothing.
    """
    if name.startswith(LEARNED):
        return _learned(Path(name.removeprefix(LEARNED)))
    if name.startswith(RATE):
        return Random(_rate(name))
    if name.partition(":")[0] in (*STATICS, GROMO):
        raise ConfigurationError(f"{name} trains a network of its own and decides nothing: run it, or compare with it")
    if name not in BASELINES:
        raise ConfigurationError(
            f"there is no baseline {name!r}; choose from {', '.join(BASELINES)}, {RATE}RATE, {LEARNED}FILE, "
            f"{', '.join(STATICS)}, {GROMO}"
        )
    return BASELINES[name]()


@lru_cache(maxsize=4)
def _learned(path: Path) -> Learned:
    try:
        policy, header, _ = load(path.read_bytes(), blueprints=tuple(blueprint_names()))
    except OSError as error:
        raise ConfigurationError(f"the policy {path} cannot be read: {error.strerror or error}") from error
    except PolicyError as error:
        raise ConfigurationError(f"{path} is no policy for this program: {error}") from error
    return Learned(policy, header.version)


def _rate(name: str) -> float:
    try:
        rate = float(name.removeprefix(RATE))
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= 1.0:
        raise ConfigurationError(f"expected random:RATE with a probability in 0..1, such as random:0.3, got {name!r}")
    return rate


def _best(graph: ModelGraph, mask: Mask, rule: _Rule, sign: float) -> int:
    """Return the load whose kernel has most parameters (`sign` 1) or fewest (-1), by growth score among equals."""
    scores = node_column(graph, "growth_share")
    found: list[tuple[float, float, int]] = []
    for index in rule._legal(graph, mask, DecisionType.LOAD_KERNEL):
        action = to_action(index, graph.layer_id, rule.kinds)
        node = graph.layer_id.index(action.layer_id or "")
        size = next(offer.parameters for offer in graph.offers[node] if offer.name == action.blueprint)
        found.append((sign * size, float(scores[node]), -index))
    return -max(found)[2] if found else 0
