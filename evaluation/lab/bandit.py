"""A contextual bandit of graphs: its best decision is known, and a policy learns it within seconds.

Each round is a network of `nodes` layers of which exactly one should grow. One feature (avg_correlation) identifies it
reliably, the growth score, which the heuristic uses, only sometimes. Growing the right layer earns GOOD with the first
blueprint and half as much with another; growing a wrong one costs BAD, slowing a layer down costs SLOW, and no_op earns
0. Rewards are noisy. So a learner can beat the heuristic, and a policy that collapsed to no_op differs from both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import blueprint_of, kinds
from tamiyo.models.behaviour import Choice, choose
from tamiyo.models.features import EDGE_FEATURES, FEATURE_VERSION, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.models.learning.learner import Learner, UpdateReport
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import decision_id, identity, sampling_seed
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.telemetry import BlueprintOffer

GOOD = 0.6
BAD = -0.2
SLOW = -0.1
HINT = 0.3  # added to the right layer's growth score; the others' are uniform in 0..1
BLUEPRINTS = ("parallel_expansion", "bottleneck")

_NODE = {feature.name: index for index, feature in enumerate(NODE_FEATURES)}
_GLOBAL = {feature.name: index for index, feature in enumerate(GLOBAL_FEATURES)}


@dataclass(frozen=True, slots=True)
class Round:
    """One context."""

    graph: ModelGraph
    """What the policy sees."""
    mask: npt.NDArray[np.bool_]
    """[actions]: which are legal."""
    expected: npt.NDArray[np.float64]
    """[actions]: the mean reward of each, hidden from the policy."""


class GrowthBandit:
    """Rounds and rewards as functions of a seed and a round's index."""

    def __init__(
        self, seed: int, *, nodes: int = 30, noise: float = 0.2, hint: float = HINT, good: float = GOOD
    ) -> None:
        """Create a bandit.

        Args:
            seed: Of all rounds and rewards.
            nodes: Layers of the network.
            noise: Standard deviation of a reward about its mean.
            hint: Added to the growth score of the right layer.
            good: Mean reward of growing the right layer; below 0, no_op is best.
        """
        self.seed = seed
        self.nodes = nodes
        self.noise = noise
        self.hint = hint
        self.good = good
        self.kinds = kinds(BLUEPRINTS)

    @property
    def params(self) -> dict[str, float]:
        """The parameters of the bandit."""
        return {"seed": self.seed, "nodes": self.nodes, "noise": self.noise, "hint": self.hint, "good": self.good}

    def round(self, index: int) -> Round:
        """Return round `index`."""
        rng = np.random.default_rng([self.seed, index])
        right = int(rng.integers(self.nodes))
        graph = self._graph(index, right, rng)
        mask = legal_actions(graph, self.kinds, limits=MaskLimits())
        return Round(graph, mask, self._expected(right))

    def reward(self, index: int, action: int) -> float:
        """Return the reward of `action` in round `index`, noise included, in [-1, 1]."""
        noise = float(np.random.default_rng([self.seed, index, action, 1]).normal(0.0, self.noise))
        return float(np.clip(self.round(index).expected[action] + noise, -1.0, 1.0))

    def experience(self, index: int, choice: Choice, policy_version: int) -> Experience:
        """Return the experience of having made `choice` in round `index`."""
        context = self.round(index)
        reward = self.reward(index, choice.index)
        return Experience(
            run_id=context.graph.run_id,
            experience_id=decision_id(context.graph.graph_id),
            revision=0,
            time_ms=context.graph.time_ms,
            graph=context.graph,
            kinds=list(self.kinds),
            action_index=choice.index,
            mask=context.mask.astype(np.uint8).tobytes(),
            probabilities=Tensor.of(choice.probabilities),
            policy_version=policy_version,
            value=choice.value,
            reward=reward,
            confidence=1.0,
            success=None if choice.index == 0 else reward > 0,
            complete=True,
        )

    def _expected(self, right: int) -> npt.NDArray[np.float64]:
        table = np.full((self.nodes, len(self.kinds)), SLOW)
        for column, kind in enumerate(self.kinds):
            blueprint = blueprint_of(kind)
            if blueprint is not None:
                table[:, column] = BAD
                table[right, column] = self.good if blueprint == BLUEPRINTS[0] else self.good / 2
        return np.concatenate([[0.0], table.ravel()])

    def _graph(self, index: int, right: int, rng: np.random.Generator) -> ModelGraph:
        nodes = self.nodes
        features = np.zeros((nodes, len(NODE_FEATURES)), np.float32)
        noisy = (
            "log_gradient_norm",
            "log_update_ratio",
            "dead_neuron_ratio",
            "log_activation_variance",
            "gradient_trend",
        )
        for name in noisy:
            features[:, _NODE[name]] = rng.normal(0.0, 0.5, nodes)
        for name, value in (("health", 1.0), ("type_linear", 1.0), ("seen", 1.0), ("growth_measured", 1.0)):
            features[:, _NODE[name]] = value
        features[:, _NODE["dormant_share"]] = 1.0
        features[:, _NODE["depth"]] = np.linspace(0.0, 1.0, nodes)
        correlation = rng.uniform(0.0, 0.5, nodes)
        correlation[right] = rng.uniform(0.8, 1.0)
        features[:, _NODE["avg_correlation"]] = correlation
        growth = rng.uniform(0.0, 1.0, nodes)
        growth[right] += self.hint
        features[:, _NODE["growth_share"]] = growth / growth.sum()
        features[:, _NODE["log_growth_score"]] = np.log10(growth + 1e-6)
        whole = np.zeros(len(GLOBAL_FEATURES), np.float32)
        for name, value in (("windows_seen", 1.0), ("progress", 0.3), ("budget_left", 1.0), ("mean_health", 1.0)):
            whole[_GLOBAL[name]] = value
        whole[_GLOBAL["train_loss"]] = rng.uniform(0.3, 1.0)
        edges = np.zeros((nodes - 1, len(EDGE_FEATURES)), np.float32)
        edges[:, 0] = 1.0
        offers = [BlueprintOffer(name=name, parameters=100, flops=100) for name in BLUEPRINTS]
        return ModelGraph(
            run_id=f"bandit-{self.seed}-{index}",  # a run of one decision: rounds have nothing to do with each other
            graph_id=identity("graph", "bandit", self.seed, index),
            window_id=identity("window", "bandit", self.seed, index),
            topology_id=identity("topology", "bandit", nodes),
            step=1000,
            final=True,
            time_ms=1_700_000_000_000 + index,
            feature_version=FEATURE_VERSION,
            layer_id=[f"layer.{number}" for number in range(nodes)],
            layer_type=["linear"] * nodes,
            node_features=Tensor.of(features),
            edge_source=list(range(nodes - 1)),
            edge_target=list(range(1, nodes)),
            edge_features=Tensor.of(edges),
            global_features=Tensor.of(whole),
            health=[1.0] * nodes,
            health_trend=[0.0] * nodes,
            problematic=[],
            signals=nodes,
            dormant_seeds=[4] * nodes,
            active_seeds=[0] * nodes,
            fossilized_seeds=[0] * nodes,
            protected=[False] * nodes,
            learning_rate_scale=[1.0] * nodes,
            offers=[offers] * nodes,
            parameters=1000,
            base_parameters=1000,
            parameter_budget=100_000,
        )


def learn_rounds(learner: Learner, bandit: GrowthBandit, rounds: Sequence[int]) -> Iterator[UpdateReport | None]:
    """Decide, reward and learn in each of `rounds`, as the stages and the learner do; yield each round's update."""
    for index in rounds:
        context = bandit.round(index)
        seed = sampling_seed(decision_id(context.graph.graph_id))
        choice = choose(learner.policy, context.graph, context.mask, seed=seed)
        yield learner.learn([bandit.experience(index, choice, learner.version)])


def expected_reward(policy: TamiyoPolicy, bandit: GrowthBandit, rounds: Sequence[int]) -> float:
    """Return the mean over `rounds` of the expected reward under the policy's distribution: exact, not sampled."""
    earned = []
    for index in rounds:
        context = bandit.round(index)
        choice = choose(policy, context.graph, context.mask, seed=0)
        earned.append(float(choice.probabilities.astype(np.float64) @ context.expected))
    return float(np.mean(earned))


def no_op_share(policy: TamiyoPolicy, bandit: GrowthBandit, rounds: Sequence[int]) -> float:
    """Return the mean probability of no_op; near 1 the policy has collapsed."""
    contexts = [bandit.round(index) for index in rounds]
    return float(np.mean([choose(policy, each.graph, each.mask, seed=0).probabilities[0] for each in contexts]))
