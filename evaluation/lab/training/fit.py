"""Fit the policy network to measured advantages, then make it choose what it is confident is best.

The reward heads learn the advantages of the actions that were tried, each head another bootstrap sample of the runs.
The actor learns to choose the legal action whose advantage is highest, tried or not, as far as the heads agree: their
mean less CAUTION standard deviations must be worth more than MARGIN, else no_op is best. Dropout and weight decay
regularise; the network, its heads and its uncertainty are those of production.

A teacher is a policy that is to learn more: the network starts as it, and on graphs where nothing was measured, its
heads learn what the teacher's predict, so that it keeps what it knew (Li and Hoiem, "Learning without forgetting",
2016).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from tamiyo.evaluation.lab.training.lookahead import Lookahead
from tamiyo.host.blueprints import names as blueprint_names
from tamiyo.models.batch import GraphBatch, combine, masked_log_softmax
from tamiyo.models.conformal import Calibration
from tamiyo.models.policy import PolicyConfig, PolicyOutput, TamiyoPolicy

HUBER = 0.2
"""Errors above it, nats, count linearly: some advantages are large because training is chaotic."""
CAUTION = 0.5
"""Standard deviations over the heads by which an advantage is lowered before the actor counts on it."""
MARGIN = 0.02
"""Advantage, nats, at which the actor is undecided between the best action and no_op."""
SOFTNESS = 0.01
"""Width of that indecision, nats."""
EXPLORATION = 0.004
"""Probability of an action that is not the best, at each graph: a run has about 24."""


ACTOR = ("node_actions.", "no_op.", "value.")
"""Prefixes of the parameters that choose; the others only predict."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A graph with the measured advantages of some actions."""

    graph: GraphBatch
    actions: tuple[int, ...]
    advantages: tuple[float, ...]
    """Over never adapting again, nats, bounded to [-1, 1]."""
    run: int
    """Number of the run that it comes from."""
    waiting: float | None = 0.0
    """What no_op is worth: the gain of the best action taken later, nats; None: unknown."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A graph where nothing was measured, with what a teacher's heads predict."""

    graph: GraphBatch
    ensemble: Tensor
    """[heads, actions]."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How the network is trained."""

    epochs: int = 60
    """Of the encoder and the reward heads."""
    actor_epochs: int = 40
    """Of the actor and the value head, on the finished embeddings."""
    batch: int = 32
    learning_rate: float = 1e-3
    actor_learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    hidden: int = 64
    layers: int = 3
    heads: int = 8
    dropout: float = 0.2
    prior_scale: float = 0.25
    max_norm: float = 1.0
    temperature: float = 0.25
    """Of the softmax when the policy decides: below 1, it does what it prefers more often than it learned to."""
    max_spread: float = 0.1
    """Of the heads, at an action: above it the policy is unsure."""
    unsure_share: float = 0.02
    """Share of the heuristic's probability that such an action keeps: on networks unlike all that it was fitted to, the
    policy changes nothing, rather than what the heuristic would, and still tries something in a hundred."""
    held_out: float = 0.1
    """Share of the runs that only calibrate the uncertainty."""
    seed: int = 0


def samples(lookaheads: Iterable[Lookahead]) -> list[Sample]:
    """Return the points of some runs, ready to be learned from."""
    kinds = TamiyoPolicy(PolicyConfig(blueprints=tuple(blueprint_names()), hidden=8, layers=1)).kinds
    return [
        Sample(
            GraphBatch.of([point.graph], kinds, [point.mask]),
            point.actions,
            tuple(np.clip(point.advantages, -1.0, 1.0).tolist()),
            number,
            None if point.waiting is None else min(1.0, point.waiting),
        )
        for number, lookahead in enumerate(lookaheads)
        for point in lookahead.points
        if point.actions
    ]


@torch.no_grad()
def lessons(lookaheads: Iterable[Lookahead], teacher: TamiyoPolicy) -> list[Lesson]:
    """Return the points of some runs where nothing was measured, with what a policy predicts there."""
    graphs = [
        GraphBatch.of([point.graph], teacher.kinds, [point.mask])
        for lookahead in lookaheads
        for point in lookahead.points
        if not point.actions
    ]
    return [Lesson(graph, teacher(graph).ensemble) for graph in graphs]


def fit(
    found: Sequence[Sample],
    settings: FitSettings | None = None,
    *,
    teacher: TamiyoPolicy | None = None,
    taught: Sequence[Lesson] = (),
    on_epoch: Callable[[int], None] | None = None,
) -> TamiyoPolicy:
    """Return a policy fitted to samples; the same arguments give the same policy on one machine.

    Args:
        found: Samples of at least a few runs.
        settings: How it is trained; of a policy with a teacher, the teacher's shape counts.
        teacher: Policy to start from, in evaluation mode; None: an untrained one.
        taught: What the policy shall keep of the teacher.
        on_epoch: Called with the number of epochs completed.
    """
    settings = settings or FitSettings()
    rng = np.random.default_rng(settings.seed)
    runs = np.unique([each.run for each in found])
    held_out = set(rng.permutation(runs)[: int(settings.held_out * len(runs))].tolist())
    policy = copy.deepcopy(teacher) if teacher is not None else _policy(settings)
    trained = [each for each in found if each.run not in held_out]
    _fit_rewards(policy, trained, taught, settings, rng, on_epoch or (lambda epoch: None))
    _fit_actor(policy, [*(each.graph for each in trained), *(each.graph for each in taught)], settings, rng)
    behaviour = policy.config.behaviour.model_copy(
        update={
            "temperature": settings.temperature,
            "max_spread": settings.max_spread,
            "unsure_share": settings.unsure_share,
        }
    )
    policy.config = policy.config.model_copy(update={"behaviour": behaviour})
    # What the teacher has seen counts too: a few runs of other networks are no measure of those that it knows.
    known = Calibration() if teacher is None else teacher.calibration
    policy.calibration = _calibrate(policy, [each for each in found if each.run in held_out], known)
    return policy


def _policy(settings: FitSettings) -> TamiyoPolicy:
    return TamiyoPolicy(
        PolicyConfig(
            blueprints=tuple(blueprint_names()),
            hidden=settings.hidden,
            layers=settings.layers,
            heads=settings.heads,
            dropout=settings.dropout,
            prior_scale=settings.prior_scale,
            heuristic_weight=0.0,
            seed=settings.seed,
        )
    )


def _fit_rewards(
    policy: TamiyoPolicy,
    found: Sequence[Sample],
    taught: Sequence[Lesson],
    settings: FitSettings,
    rng: np.random.Generator,
    on_epoch: Callable[[int], None],
) -> None:
    runs = 1 + max(each.run for each in found)
    weights = torch.from_numpy(rng.poisson(1.0, (runs, policy.config.heads))).float()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    per_epoch = -(-len(found) // settings.batch)
    schedule = OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.epochs * per_epoch + 1)
    policy.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for epoch in range(settings.epochs):
            order = rng.permutation(len(found))
            for start in range(0, len(found), settings.batch):
                chosen = [found[index] for index in order[start : start + settings.batch]]
                loss = _loss(policy, chosen, weights)
                if taught:
                    loss = loss + _kept(policy, [taught[i] for i in rng.integers(len(taught), size=settings.batch)])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(policy.parameters(), settings.max_norm)
                optimizer.step()
                schedule.step()
            on_epoch(epoch + 1)
    policy.eval()


def _loss(policy: TamiyoPolicy, chosen: Sequence[Sample], weights: Tensor) -> Tensor:
    batch = combine([each.graph for each in chosen])
    output: PolicyOutput = policy(batch)
    firsts = batch.offsets[:-1].tolist()
    known = [(first, each, *_known(each)) for first, each in zip(firsts, chosen, strict=True)]
    tried = torch.tensor([first + action for first, _, actions, _ in known for action in actions])
    targets = torch.tensor([value for *_, values in known for value in values])
    weight = torch.cat([weights[each.run].expand(len(actions), -1) for _, each, actions, _ in known]).T
    predicted = output.ensemble[:, tried]
    errors = F.huber_loss(predicted, targets.expand_as(predicted), delta=HUBER, reduction="none")
    return (weight * errors).mean() / HUBER**2


def _kept(policy: TamiyoPolicy, chosen: Sequence[Lesson]) -> Tensor:
    """Return how far the heads are from the teacher's, on the legal actions of some graphs."""
    batch = combine([each.graph for each in chosen])
    output: PolicyOutput = policy(batch)
    predicted = output.ensemble[:, batch.mask]
    targets = torch.cat([each.ensemble for each in chosen], dim=1)[:, batch.mask]
    return F.huber_loss(predicted, targets, delta=HUBER) / HUBER**2


def _known(sample: Sample) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the actions of which something was measured, no_op included, and what."""
    if sample.waiting is None:
        return sample.actions, sample.advantages
    return (0, *sample.actions), (sample.waiting, *sample.advantages)


def _fit_actor(
    policy: TamiyoPolicy, graphs: Sequence[GraphBatch], settings: FitSettings, rng: np.random.Generator
) -> None:
    """Teach actor and value heads what `improved` makes of the reward heads; nothing else changes."""
    with torch.no_grad():
        goals = [improved(policy(graph), graph) for graph in graphs]
    heads = [each for name, each in policy.named_parameters() if name.startswith(ACTOR)]
    optimizer = torch.optim.AdamW(heads, lr=settings.actor_learning_rate, weight_decay=1e-3)
    for _ in range(settings.actor_epochs):
        order = rng.permutation(len(graphs))
        for start in range(0, len(graphs), settings.batch):
            inds = order[start : start + settings.batch]
            batch = combine([graphs[index] for index in inds])
            output: PolicyOutput = policy(batch)
            goal = torch.cat([goals[index][0] for index in inds])
            value = torch.cat([goals[index][1] for index in inds])
            log_probabilities = masked_log_softmax(output.logits, batch.mask, batch.action_graph)
            legal = batch.mask
            loss = -(goal[legal] * log_probabilities[legal]).sum() / batch.graphs
            loss = loss + (output.value - value).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def improved(output: PolicyOutput, batch: GraphBatch) -> tuple[Tensor, Tensor]:
    """Return the distribution that the actor shall learn, [A], and what each graph is worth under it, [graphs].

    Args:
        output: Of the network for `batch`.
        batch: The graphs.
    """
    goal = torch.zeros_like(output.logits)
    value = torch.zeros(batch.graphs)
    for graph, (start, end) in enumerate(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)):
        over = output.ensemble[:, start:end] - output.ensemble[:, start : start + 1]
        cautious = over.mean(dim=0) - CAUTION * over.std(dim=0, correction=0)
        cautious[~batch.mask[start:end]] = -torch.inf
        cautious[0] = -torch.inf
        best = int(cautious.argmax())
        explored = batch.mask[start:end].clone()
        explored[0] = False
        if not explored.any():
            goal[start] = 1.0
            continue
        share = torch.sigmoid((cautious[best] - MARGIN) / SOFTNESS)
        goal[start:end][explored] = EXPLORATION / int(explored.sum())
        goal[start + best] += (1 - EXPLORATION) * share
        goal[start] = (1 - EXPLORATION) * (1 - share)
        value[graph] = share * over[:, best].mean()
    return goal, value


def _calibrate(policy: TamiyoPolicy, found: Sequence[Sample], known: Calibration) -> Calibration:
    """Return a calibration after the measured advantages of runs that the policy was not fitted to."""
    predicted, spread, measured = predictions(policy, found)
    return known.update(predicted, spread, measured)


@torch.no_grad()
def predictions(
    policy: TamiyoPolicy, found: Sequence[Sample]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return predicted advantages, their spreads and the measured advantages of the tried actions, [actions] each."""
    predicted: list[float] = []
    spread: list[float] = []
    for each in found:
        output: PolicyOutput = policy(each.graph)
        actions = list(each.actions)
        predicted += output.predicted_reward[actions].tolist()
        spread += output.spread[actions].tolist()
    measured = [value for each in found for value in each.advantages]
    return np.array(predicted), np.array(spread), np.array(measured)
