"""Shadow twins: what an adaptation gained, measured on a copy of the run that trains without it.

A copy of model, optimiser and random streams, made immediately before an adaptation is executed, trains on the same
batches with the same loss. After a number of steps both are compared on the held-out batch. Nothing is modelled, and
what is common to both (drift, noise of the batches, the schedule) cancels (design, section 6).

The user's run is never touched: it computes the same bits with and without a twin.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host._common import clock
from tamiyo.host._common.device import read_all
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host._probes.counterfactual import HeldOutBatch, counters_kept
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.shadow import Batch, CopyableOptimizer, LossFunction, Shadow, devices
from tamiyo.schemas.adaptation import AdaptationDecision, DecisionType
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.identity import identity

log = logging.getLogger(__name__)

SHORTEST = 2 / 3
"""Share of the steps below which a measurement that ends early is discarded: 200 steps agree with the truth at r = .73,
300 at .88, 100 at .41 (design, section 6)."""
COST_LIMIT = 4.0
"""A shadow whose step takes more than so many of the loop's is dropped: the budget was computed for less."""
GRADIENT_RATIO = 2.0
"""Norms further apart than this factor differ by more than dropout: the loop does not train on `loss_fn`."""
_SETTLED = 50  # steps before the cost of a shadow's step is judged


@dataclass(frozen=True, slots=True)
class TwinResult:
    """The measured gain of an adaptation.

    Attributes:
        gain: log(loss without the adaptation / loss with it), nats of log loss.
        steps: Optimiser steps over which both were trained.
        probability: Probability with which the adaptation was chosen for a measurement, in (0, 1].
    """

    gain: float
    steps: int
    probability: float


class ShadowTwin:
    """Measures a randomly chosen share of the executed adaptations, one at a time, within a budget.

    An adaptation is chosen if a hash of its decision's id, uniform in 0..1, is below a probability: the steps that the
    budget leaves, divided by what this adaptation and those still expected (at the rate of those before it, up to the
    planned end) would cost if each were measured. Without a planned end only the steps so far count.

    A step of the twin is one `optimizer.step()` of the loop. With gradient accumulation the loop passes each
    micro-batch; the gradient of the twin's step is the mean over the batches since the previous one. The optimiser's
    hyper-parameters, such as a scheduler's learning rate, are those that the loop's own step used.

    A further adaptation ends the measurement under way: from there on the two would differ by more than one adaptation.
    After two thirds of the steps the result is published, with their number; before, it is discarded.

    No method raises: a twin that fails is dropped with one line in the log, and training continues.
    """

    def __init__(
        self,
        model: nn.Module,
        growing: CopyableOptimizer,
        loss_fn: LossFunction,
        held_out: HeldOutBatch | None,
        meter: OverheadMeter,
        *,
        budget: float,
        steps: int,
        planned_steps: int | None,
    ) -> None:
        """Hook into the optimisers to see their steps.

        Args:
            model: The attached model.
            growing: Its optimisers.
            loss_fn: Returns the mean loss, nats.
            held_out: Where both are compared; None: on the training losses of the last steps.
            meter: The time of the twin is excluded from both training and overhead.
            budget: Share of the training time that twins may take; more than 0.
            steps: Steps of a measurement.
            planned_steps: Length of the training, if known.
        """
        self.seconds = 0.0
        """Time taken by twins."""
        self.results: dict[str, TwinResult] = {}
        """Results by layer_id that have not been published yet."""
        self._model = model
        self._growing = growing
        self._loss_fn = loss_fn
        self._held_out = held_out
        self._meter = meter
        self._budget = budget
        self._steps = steps
        self._planned_steps = planned_steps
        self._shadow: Shadow | None = None
        self._trained = 0
        """Steps of all twins so far."""
        self._adaptations = 0
        self._step = 0
        count = len(growing.optimizers)
        self._optimizer_steps = [0] * count
        """Steps of each of the user's optimisers since the last call of `follow`."""
        self._rates: list[list[dict[str, Any]]] = [[]] * count
        self._accumulated: list[Batch] | None = None
        """Batches since the optimiser's last step; None if the loop passes none."""
        self._hooks = [
            optimizer.register_step_post_hook(partial(self._stepped, number))
            for number, optimizer in enumerate(growing.optimizers)
        ]

    @property
    def active(self) -> bool:
        """Whether a measurement is under way."""
        return self._shadow is not None

    def follow(self, step: int, loss: Tensor | float, batch: Batch | None) -> None:
        """Take a step of the loop; a measurement under way trains on its batch.

        Args:
            step: The step just completed.
            loss: Its loss, nats.
            batch: What it trained on; None: nothing can be measured.
        """
        stepped, self._optimizer_steps, self._step = self._optimizer_steps, [0] * len(self._optimizer_steps), step
        if batch is None:
            self._accumulated = None
        else:
            self._accumulated = [] if any(stepped) else [*(self._accumulated or ()), batch]
        shadow = self._shadow
        if shadow is None:
            return
        self._wait()  # for the loop's own work on the GPU: the twin's time begins after it
        started = clock.seconds()
        try:
            with shadow.streams.swapped():
                self._train(shadow, step, loss, batch, stepped)
        except Exception as error:  # training comes first
            self._drop(f"{type(error).__name__}: {error}")
        finally:
            self._account(started)

    def begin(self, decision: AdaptationDecision, step: int) -> None:
        """End the measurement under way, and begin one of `decision`, about to be executed, if it is chosen."""
        started = clock.seconds()
        try:
            self._end_early()
            probability = self._probability(step)
            self._adaptations += 1
            if decision.layer_id is None or self._accumulated is None or _uniform(decision) >= probability:
                return
            self._wait()
            self._shadow = Shadow(self._model, self._growing, self._loss_fn, decision, probability)
            with self._shadow.streams.swapped():
                for batch in self._accumulated:
                    self._shadow.accumulate(batch)
        except Exception as error:  # training comes first
            self._drop(f"{type(error).__name__}: {error}")
        finally:
            self._account(started)

    def cancel(self, reason: str) -> None:
        """Discard the measurement under way, if there is one."""
        if self._shadow is not None:
            self._drop(reason)

    def close(self) -> None:
        """Discard the measurement under way, and remove the hooks from the optimisers."""
        self._shadow = None
        for hook in self._hooks:
            hook.remove()

    def _stepped(self, number: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._optimizer_steps[number] += 1
        if self._shadow is None:
            return
        try:
            self._rates[number] = [_hyper_parameters(group) for group in optimizer.param_groups]
        except Exception as error:  # this is inside the user's optimizer.step()
            self._drop(f"{type(error).__name__}: {error}")

    def _probability(self, step: int) -> float:
        """Return the probability with which an adaptation at `step` is measured."""
        remaining = 0 if self._planned_steps is None else max(0, self._planned_steps - step)
        if self._planned_steps is not None and remaining < self._steps:
            return 0.0  # it could not end
        # The loop's steps are the unit; a twin's may take longer.
        cost = self._relative_cost(self.seconds, self._trained)
        left = self._budget * (step + remaining) - cost * self._trained
        expected = 1 + remaining * self._adaptations / step
        return min(1.0, max(0.0, left / (cost * self._steps * expected)))

    def _relative_cost(self, seconds: float, steps: int) -> float:
        """Return the time of a twin's step, of which `steps` took `seconds`, in steps of the loop, at least 1."""
        if steps < _SETTLED or self._meter.training_seconds <= 0:
            return 1.0
        return max(1.0, (seconds / steps) / (self._meter.training_seconds / self._step))

    def _train(
        self, shadow: Shadow, step: int, loss: Tensor | float, batch: Batch | None, optimizer_steps: list[int]
    ) -> None:
        if batch is None or max(optimizer_steps) > 1 or len(set(optimizer_steps)) > 1:
            made = " and ".join(map(str, optimizer_steps))
            reason = "a step has no batch" if batch is None else f"{made} optimiser steps in one step"
            self._drop(f"{reason}: call handle.step(loss=..., batch=...) once after each optimizer.step()")
            return
        shadow.losses.append((loss.detach() if isinstance(loss, Tensor) else loss, shadow.accumulate(batch)))
        if any(optimizer_steps):
            # A load preserves the function, so both gradients are the same at first.
            fresh = shadow.steps == 0 and shadow.decision.type == DecisionType.LOAD_KERNEL
            ratio = shadow.gradient_ratio(self._model) if fresh else 1.0
            if not 1 / GRADIENT_RATIO < ratio < GRADIENT_RATIO:
                self._drop(f"its gradient is {ratio:.3g} of the loop's: is loss_fn the loss of the loop?")
                return
            shadow.step(self._rates)
            self._trained += 1
        if shadow.steps >= self._steps:
            self._finish(shadow)
            return
        shadow.advance(step)
        if self._relative_cost(shadow.seconds, shadow.steps) > COST_LIMIT:
            self._drop(f"a step of it takes more than {COST_LIMIT:g} of the loop's: over budget")

    def _end_early(self) -> None:
        shadow = self._shadow
        if shadow is None:
            return
        if shadow.steps >= SHORTEST * self._steps:
            with shadow.streams.swapped():
                self._finish(shadow)
        else:
            self._drop(f"another adaptation after {shadow.steps} of {self._steps} steps", level=logging.INFO)

    def _finish(self, shadow: Shadow) -> None:
        """Compare both; a result that is not finite is discarded."""
        self._shadow = None
        together, without = self._losses(shadow)
        if together is None or without is None or not (0 < together < math.inf and 0 < without < math.inf):
            self._log_dropped(shadow, f"the losses are {together} and {without}")
            return
        result = TwinResult(math.log(without / together), shadow.steps, shadow.probability)
        self.results[shadow.layer_id] = result
        log.info("shadow twin of decision %s: %s", shadow.decision.decision_id, result)

    def _losses(self, shadow: Shadow) -> tuple[float | None, float | None]:
        """Return the loss with and without the adaptation, nats."""
        if self._held_out is not None:
            kernels = kernels_of(self._model)
            with counters_kept([] if kernels is None else kernels.layers.values()):
                together = self._held_out.loss()
            return together, self._held_out.of(shadow.model).loss()
        return _mean([own for own, _ in shadow.losses]), _mean([twin for _, twin in shadow.losses])

    def _drop(self, reason: str, level: int = logging.WARNING) -> None:
        shadow, self._shadow = self._shadow, None
        self._log_dropped(shadow, reason, level)

    def _log_dropped(self, shadow: Shadow | None, reason: str, level: int = logging.WARNING) -> None:
        name = "" if shadow is None else f" of decision {shadow.decision.decision_id}"
        log.log(level, "shadow twin%s dropped: %s; training continues", name, reason)

    def _account(self, started: float) -> None:
        self._wait()
        elapsed = clock.seconds() - started
        self.seconds += elapsed
        if self._shadow is not None:
            self._shadow.seconds += elapsed
        self._meter.exclude(elapsed)

    def _wait(self) -> None:
        # A failure of the device is the loop's, which meets it at its next call.
        with suppress(RuntimeError):
            for device in devices(self._model):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)


def require_measurable(budget: float, loss_fn: LossFunction | None) -> None:
    """Raise ConfigurationError if there is a budget for shadow twins, but they cannot work in this process."""
    if not 0 <= budget < math.inf:
        raise ConfigurationError(f"twin_budget must be a share of the training time, such as 0.1, got {budget}")
    if not budget:
        return
    if loss_fn is None:
        raise ConfigurationError("twin_budget needs loss_fn: a shadow twin trains on loss_fn(model(inputs), targets)")
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise ConfigurationError(
            f"twin_budget needs a single process, and torch.distributed has {distributed.get_world_size()} ranks: "
            "a copy would have to train on all of them; set twin_budget=0"
        )


def _uniform(decision: AdaptationDecision) -> float:
    """Return a number in 0..1 from the decision's id: no random stream moves, and a repetition chooses alike."""
    return int(identity("twin", decision.decision_id)[:13], 16) / 16**13


def _hyper_parameters(group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a param group's values without its parameters; a scheduler may change tensors in place."""
    values = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def _mean(losses: Sequence[Tensor | float]) -> float:
    """Return the mean of some losses, with one transfer from the device."""
    tensors = [loss for loss in losses if isinstance(loss, Tensor)]
    return (sum(read_all(tensors)) + sum(loss for loss in losses if not isinstance(loss, Tensor))) / len(losses)
