"""One update of the policy: epochs of minibatches, then checks, and a rollback if they fail."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tamiyo.models.batch import GraphBatch, graph_entropy, masked_log_softmax
from tamiyo.models.conformal import NOISE_FLOOR
from tamiyo.models.learning.example import Example, stack
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.ppo import (
    Losses,
    Targets,
    choices,
    divergence,
    normalise_advantage,
    ppo_loss,
    weighted_mean,
)
from tamiyo.models.learning.update_batch import UpdateBatch
from tamiyo.models.policy import Acted, PolicyOutput, TamiyoPolicy
from tamiyo.schemas.errors import PolicyError, StepTooLarge, UpdateRejected


@dataclass(frozen=True, slots=True)
class Prediction:
    """The policy's predictions for some examples, from before it learns from them."""

    reward: npt.NDArray[np.float32]
    """[examples]: ensemble mean at the executed action."""
    spread: npt.NDArray[np.float32]
    """[examples]: standard deviation over the heads at that action."""
    value: npt.NDArray[np.float32]
    """[examples]: the value head's estimate of the rewards from the decision on."""


@dataclass(frozen=True, slots=True)
class Update:
    """An accepted update."""

    metrics: dict[str, float]
    """`losses/...` as means over the gradient steps, as cleanrl names them."""
    advantages: npt.NDArray[np.float32]
    """[examples]: return - value under the new policy, which sets the new priorities."""


class Updater:
    """A policy, its optimiser and its proximal policy: what an update changes and a rollback restores.

    Dropout stays off: with it, the ratio of a policy to itself would differ from 1, and the KL bound would measure
    noise. On the bandit of graphs, learning was no faster with it (evaluation/lab/bandit.py, three seeds).
    """

    def __init__(self, policy: TamiyoPolicy, settings: LearningSettings, state: dict[str, Any] | None = None) -> None:
        """Start with a new policy, or resume.

        Args:
            policy: The policy to learn; it is changed in place.
            settings: Hyperparameters.
            state: A `state()` from the same checkpoint as `policy`.

        Raises:
            PolicyError: `state` does not fit `policy`.
        """
        self.policy = policy.eval()
        self.settings = settings
        self.proximal = copy.deepcopy(policy).eval().requires_grad_(False)
        self._deciding = [each for name, each in policy.named_parameters() if not name.startswith(CRITICS)]
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._average = get_ema_multi_avg_fn(settings.ewma_decay)  # type: ignore[no-untyped-call]
        self.scheduler = CosineAnnealingLR(
            self.optimizer, T_max=settings.t_max, eta_min=min(settings.minimum_learning_rate, settings.learning_rate)
        )
        if state is not None:
            self.restore({"policy": policy.state_dict(), **state})

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores in addition to the policy's weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "proximal": self.proximal.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore an earlier state.

        Args:
            state: A `state()`, with the policy's weights under "policy".

        Raises:
            PolicyError: The state does not fit the policy.
        """
        try:
            self.policy.load_state_dict(state["policy"])
            self.proximal.load_state_dict(state["proximal"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.last_epoch = int(state["scheduler"]["last_epoch"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PolicyError(f"the learner's state does not fit this policy: {error}") from error

    @torch.no_grad()
    def predict(self, examples: Sequence[Example]) -> Prediction:
        """Predict the rewards of examples.

        Args:
            examples: At least one example.
        """
        batch, action = stack(examples)
        output: PolicyOutput = self.policy(batch)
        return Prediction(output.predicted_reward[action].numpy(), output.spread[action].numpy(), output.value.numpy())

    def update(
        self,
        examples: Sequence[Example],
        corrections: npt.ArrayLike,
        returns: npt.ArrayLike,
        *,
        version: int,
        rng: np.random.Generator,
        critics_only: bool = False,
        check: Callable[[TamiyoPolicy], None] | None = None,
    ) -> Update:
        """Learn from a batch, or leave everything unchanged.

        An update that moves the policy too far is shortened to a quarter, up to `shortenings` times, before it is given
        up: otherwise every batch that pulls in the same direction would fail alike, and the policy never move. The
        value and the reward heads keep their whole step, until the last time: they set what the policy is sure of.

        Args:
            examples: The batch; its order does not matter.
            corrections: Importance corrections from replay, in (0, 1], [examples]; 1 for fresh ones.
            returns: Rewards from each decision to the end of its run, [examples].
            version: Version of the present policy, from which the age of an example is counted.
            rng: Draws the minibatches.
            critics_only: Whether only the value and the reward heads learn.
            check: Raises UpdateRejected if it finds the new policy not fit to act, StepTooLarge if it moved too far.

        Returns:
            Metrics and new advantages.

        Raises:
            UpdateRejected: The new policy is not fit to act. The policy is as it was before.
        """
        safe = copy.deepcopy({"policy": self.policy.state_dict(), **self.state()})
        try:
            weights, credit = (np.asarray(each, dtype=np.float32) for each in (corrections, returns))
            return self._update(examples, weights, credit, version, rng, frozen=critics_only, check=check)
        except UpdateRejected:
            self.restore(safe)
            raise
        finally:
            self.policy.eval()

    def _update(
        self,
        examples: Sequence[Example],
        corrections: npt.NDArray[np.float32],
        returns: npt.NDArray[np.float32],
        version: int,
        rng: np.random.Generator,
        *,
        frozen: bool,
        check: Callable[[TamiyoPolicy], None] | None,
    ) -> Update:
        settings = self.settings
        origin = self._weights()
        batch = UpdateBatch(self.policy.rewards, examples)
        acted = batch.act(self.policy)
        before = batch.log_probabilities(acted)
        value = batch.values(self.policy, acted)
        proximal = batch.log_probabilities(batch.act(self.proximal))
        b = self._targets(examples, corrections, returns, version, batch.action, proximal, value)
        if float(b.weight.sum()) <= 0:
            raise UpdateRejected("no experience of the batch has a confidence above 0")

        parts = torch.split(before, batch.graph.offsets.diff().tolist())
        history: list[Losses] = []
        skipped = 0
        settled = acted if frozen else None  # what decides, once it does not learn any more
        b_inds = np.arange(len(examples))
        for _ in range(settings.update_epochs):
            rng.shuffle(b_inds)
            for start in range(0, len(b_inds), settings.minibatch_size):
                mb_inds = b_inds[start : start + settings.minibatch_size]
                losses, kl = self._step(batch, mb_inds, b, torch.cat([parts[i] for i in mb_inds]), settled)
                skipped += losses is None
                if losses is not None:
                    history.append(losses)
                if settled is None and kl > settings.target_kl:
                    settled = batch.act(self.policy)
        if not history:
            raise UpdateRejected(
                f"all {skipped} minibatches had a loss that was above {settings.max_loss} or not finite"
            )
        stopped = settled is not None and not frozen
        for shortened in range(settings.shortenings + 1):
            try:
                checks, advantages = self._check(batch, before, b, settled)
                if check is not None:
                    check(self.policy.eval())
                break
            except StepTooLarge:
                if shortened == settings.shortenings:
                    raise
                self._shorten(origin, critics=shortened + 1 == settings.shortenings)
                settled = None
        if self.scheduler.last_epoch < settings.t_max:
            self.scheduler.step()
        means = {
            name: float(np.mean([float(getattr(losses, field).detach()) for losses in history]))
            for name, field in LOSSES.items()
        }
        metrics = {
            **means,
            **checks,
            "losses/explained_variance": _explained_variance(value.numpy(), b.returns.numpy()),
            "charts/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "charts/gradient_steps": float(len(history)),
            "charts/step_share": SHORTER**shortened,
            "charts/minibatches_skipped": float(skipped),
            "charts/stopped_early": float(stopped),
            "charts/critics_only": float(frozen),
        }
        return Update(metrics, advantages)

    def _weights(self) -> dict[str, list[Tensor]]:
        """Return copies of all weights: of what decides, in policy and proximal policy, and of what only predicts."""
        return {name: [each.detach().clone() for each in weights] for name, weights in self._parts().items()}

    def _parts(self) -> dict[str, list[Tensor]]:
        parts: dict[str, list[Tensor]] = {"critics": [], "deciding": []}
        for name, each in [*self.policy.named_parameters(), *self.proximal.named_parameters()]:
            parts["critics" if name.startswith(CRITICS) else "deciding"].append(each)
        return parts

    @torch.no_grad()
    def _shorten(self, origin: dict[str, list[Tensor]], *, critics: bool) -> None:
        """Shorten the step from the weights `origin`; with `critics`, theirs becomes as short as the policy's."""
        parts = self._parts()
        torch._foreach_lerp_(parts["deciding"], origin["deciding"], 1 - SHORTER)
        if critics:
            share = SHORTER**self.settings.shortenings
            torch._foreach_lerp_(parts["critics"], origin["critics"], 1 - share)

    def _targets(
        self,
        examples: Sequence[Example],
        corrections: npt.NDArray[np.float32],
        returns: npt.NDArray[np.float32],
        version: int,
        action: Tensor,
        proximal: Tensor,
        value: Tensor,
    ) -> Targets:
        credit = torch.from_numpy(returns)
        weight = torch.tensor([example.confidence for example in examples]) * torch.from_numpy(corrections)
        # Without a choice there is nothing for the actor to improve; the reward and value heads still learn.
        actor = torch.tensor(
            [float(each.choices > 1 and version - each.policy_version <= self.settings.max_age) for each in examples]
        )
        return Targets(
            action=action,
            behaviour_logprob=torch.tensor([example.log_propensity for example in examples]),
            proximal_logprob=proximal[action],
            advantage=normalise_advantage(credit - value, weight * actor, self.settings.minimum_scale),
            returns=credit,
            reward=torch.tensor([example.reward for example in examples]),
            weight=weight,
            actor=actor,
            bootstrap=torch.tensor([example.bootstrap for example in examples]).T,
        )

    def _step(
        self,
        batch: UpdateBatch,
        mb_inds: npt.NDArray[np.int64],
        b: Targets,
        before: Tensor,
        settled: Sequence[Acted] | None,
    ) -> tuple[Losses | None, float]:
        """Take one gradient step.

        Args:
            batch: The whole batch.
            mb_inds: Examples of the minibatch, [g].
            b: Targets of the whole batch.
            before: Log-probabilities, before the update, of the minibatch's actions, [A].
            settled: What decides, of each example, if only the value and the reward heads may learn; else None.

        Returns:
            The losses, or None if the step was skipped; and KL(before || now), nats.
        """
        graph, action = stack([batch.examples[index] for index in mb_inds])
        output = batch.output(self.policy, mb_inds.tolist(), graph, action, settled)
        mb_b = b.minibatch(torch.from_numpy(mb_inds), action)
        calibration = self.policy.calibration
        losses = ppo_loss(
            output, graph, mb_b, self.settings, multiplier=calibration.multiplier, noise_floor=NOISE_FLOOR
        )
        with torch.no_grad():
            now = masked_log_softmax(output.logits, graph.mask, graph.action_graph)
            kl = self._divergence(before, now, graph, mb_b.actor)
        loss = float(losses.total.detach())
        if not math.isfinite(loss) or abs(loss) > self.settings.max_loss:
            return None, kl
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        frozen = settled is not None or kl > self.settings.target_kl
        if frozen:
            for parameter in self._deciding:
                parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.settings.max_grad_norm, foreach=True)
        if not torch.isfinite(norm):
            return None, kl
        self.optimizer.step()
        if not frozen:
            self._average(list(self.proximal.parameters()), list(self.policy.parameters()), None)
        return losses, kl

    def _divergence(self, before: Tensor, now: Tensor, batch: GraphBatch, actor: Tensor) -> float:
        return float(weighted_mean(divergence(before, now, batch.action_graph, batch.graphs), actor))

    @torch.no_grad()
    def _check(
        self, batch: UpdateBatch, before: Tensor, b: Targets, settled: Sequence[Acted] | None
    ) -> tuple[dict[str, float], npt.NDArray[np.float32]]:
        """Return the new policy's metrics and advantages, or raise UpdateRejected if it is not fit to act."""
        parameters = [*self.policy.parameters(), *self.proximal.parameters()]
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise UpdateRejected("the new weights are not finite")
        outputs = batch.outputs(self.policy, settled)
        parts = [part for each in outputs for part in (each.logits, each.value, each.ensemble)]
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise UpdateRejected("the new policy's output is not finite")
        graph = batch.graph
        now = masked_log_softmax(torch.cat([each.logits for each in outputs]), graph.mask, graph.action_graph)
        kl = self._divergence(before, now, graph, b.actor)
        if kl > self.settings.max_kl:
            raise StepTooLarge(f"the policy moved by {kl:.3f} nats, more than the limit of {self.settings.max_kl}")
        choosing = (choices(graph.mask, graph.action_graph, graph.graphs) > 1).float()
        entropy_before, entropy_now = (
            float(weighted_mean(graph_entropy(each, graph.action_graph, graph.graphs), choosing))
            for each in (before, now)
        )
        # The heuristic itself may lie below the floor; then an update must not lower the entropy further.
        if choosing.any() and entropy_now < self.settings.entropy_floor and entropy_now < entropy_before:
            raise StepTooLarge(
                f"the entropy fell from {entropy_before:.3f} to {entropy_now:.3f} nats, below the floor of "
                f"{self.settings.entropy_floor}"
            )
        advantages = b.returns - torch.cat([each.value for each in outputs])
        return {"losses/kl": kl, "losses/entropy_after": entropy_now}, advantages.numpy()


SHORTER = 0.25
"""Share of its step that an update keeps which has moved the policy too far."""

CRITICS = ("rewards.", "value.")
"""Prefixes of the parameters that only predict: they continue to learn after the policy has reached `target_kl`."""

LOSSES = {
    "losses/total": "total",
    "losses/policy_loss": "policy",
    "losses/value_loss": "value",
    "losses/entropy": "entropy",
    "losses/safety": "safety",
    "losses/reward_loss": "reward",
    "losses/approx_kl": "approx_kl",
    "losses/clipfrac": "clipfrac",
    "losses/importance": "importance",
}


def _explained_variance(predicted: npt.NDArray[np.float32], observed: npt.NDArray[np.float32]) -> float:
    """Return 1 - Var(observed - predicted) / Var(observed): 1 is perfect, 0 a constant's; 0 if nothing varies."""
    variance = float(np.var(observed))
    return 0.0 if variance < 1e-12 else 1 - float(np.var(observed - predicted)) / variance
