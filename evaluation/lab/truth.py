"""What decisions were really worth, read off the curves of a run and of its twins. All in nats of log loss.

Three quantities, kept apart:

- *near effect*: log held-out loss without and with the adaptation, no later one in either twin, at a horizon;
- *gain*: the same in the run's objective, so that a run's gains add up to what it gained over never adapting: the k-th
  is the objective with the first k adaptations and no more, less that with the first k - 1;
- *worth*: what the decision changed in the objective when both twins go on under the same policy.

A worth is measured once for each decision, and part of it is chance: the order of the data, and what the policy happens
to draw later. So it is measured again for some, and no estimate of it can agree with the first measurement much better
than the square root of the correlation of two of them.

The objective is minus the log of the early-stopped held-out loss at equal compute: the test loss where the validation
loss is lowest, among the steps that a run without adaptations could have paid for. Costs are `rewards.worth`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tamiyo.evaluation.lab.run import Adaptation, Curve, RunResult
from tamiyo.evaluation.lab.traffic import (
    ALONE,
    REDRAWN_WITH,
    REDRAWN_WITHOUT,
    REORDERED_WITH,
    REORDERED_WITHOUT,
    REPEATED_WITH,
    REPEATED_WITHOUT,
    UNDER_POLICY,
    Traffic,
)
from tamiyo.streams.stages.rewards.worth import ADAPTATION_COST, PARAMETER_COST

HORIZONS = (100, 300, 600)
"""Steps after an adaptation at which its near effect is measured."""
SMALLEST_LOSS = 1e-6
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Truth:
    """An executed adaptation and its true effects; None where a twin is missing."""

    decision_id: str
    adaptation: Adaptation
    gain: float | None
    """In the objective, without costs."""
    cost: float
    worth: float | None
    """Costs included."""
    near: dict[int, float]
    """By horizon in steps."""
    near_at_equal_compute: float | None
    """At the compute that the twin without the adaptation has spent 300 steps later."""
    repeated: float | None
    """The gain on another order of the data."""
    reordered_worth: float | None
    """The worth on another order of the data from the decision on."""
    redrawn_worth: float | None
    """The worth on a third order of the data, with another random stream of the policy."""
    hindsight_worth: float | None
    """The run as it was, less one without the decision on another order of the data: what is unknown in production is
    the second only."""


def objective(result: RunResult) -> float:
    """Return minus the log of the early-stopped test loss at equal compute."""
    curve = result.curve
    within = [i for i, compute in enumerate(curve.compute) if compute <= result.compute * (1 + _ROUNDING)]
    if not within:
        return math.nan
    best = min(within, key=lambda i: curve.validation[i])
    return -math.log(max(curve.test[best], SMALLEST_LOSS))


def costs(result: RunResult) -> float:
    """Return the costs of a run's adaptations."""
    executed = sum(each.status == "executed" for each in result.adaptations)
    grown = result.curve.kernel_parameters[-1] if result.curve.kernel_parameters else 0
    return ADAPTATION_COST * executed + PARAMETER_COST * grown / max(result.budget, 1)


def truths(traffic: Traffic) -> Iterator[Truth]:
    """Yield every executed adaptation of a run with what its twins tell."""
    run = traffic.result
    executed = [each for each in run.adaptations if each.status == "executed"]
    for index, each in enumerate(executed):
        following = next((e for e in executed[index + 1 :] if not is_late(run, e.step)), None)
        pair = _pair(
            run if following is None else traffic.branch(following.decision_id, ALONE),
            traffic.branch(each.decision_id, ALONE),
        )
        again = _pair(
            traffic.branch(each.decision_id, REPEATED_WITH), traffic.branch(each.decision_id, REPEATED_WITHOUT)
        )
        late = is_late(run, each.step)
        policy, reordered, without_reordered, redrawn, without_redrawn = (
            traffic.branch(each.decision_id, kind)
            for kind in (UNDER_POLICY, REORDERED_WITH, REORDERED_WITHOUT, REDRAWN_WITH, REDRAWN_WITHOUT)
        )
        yield Truth(
            each.decision_id,
            each,
            gain=0.0 if late else pair.gain if pair else None,
            cost=ADAPTATION_COST + (PARAMETER_COST * pair.grown if pair else 0.0),
            worth=-ADAPTATION_COST if late else _worth(run, policy),
            near=near_effects(pair.without.curve, pair.with_it.curve, each.step) if pair else {},
            near_at_equal_compute=_at_equal_compute(pair.without.curve, pair.with_it.curve, each.step + 300)
            if pair
            else None,
            repeated=again.gain if again else None,
            reordered_worth=_worth(reordered, without_reordered),
            redrawn_worth=_worth(redrawn, without_redrawn),
            hindsight_worth=_worth(run, without_reordered),
        )


def is_late(run: RunResult, step: int) -> bool:
    """Return whether a step lies beyond the compute of a run without adaptations: nothing from there on counts."""
    return float(np.interp(step, run.curve.step, run.curve.compute)) >= run.compute * (1 - _ROUNDING)


@dataclass(frozen=True, slots=True)
class _Pair:
    with_it: RunResult
    without: RunResult

    @property
    def gain(self) -> float:
        return objective(self.with_it) - objective(self.without)

    @property
    def grown(self) -> float:
        """Kernel parameters that the adaptation added, as a share of the budget."""
        more = self.with_it.curve.kernel_parameters[-1] - self.without.curve.kernel_parameters[-1]
        return more / max(self.with_it.budget, 1)


def _worth(with_it: RunResult | None, without: RunResult | None) -> float | None:
    """Return what two runs under the same policy differ by, costs included."""
    if with_it is None or without is None:
        return None
    return objective(with_it) - costs(with_it) - objective(without) + costs(without)


def _pair(with_it: RunResult | None, without: RunResult | None) -> _Pair | None:
    return None if with_it is None or without is None else _Pair(with_it, without)


def near_effects(without: Curve, with_it: Curve, step: int) -> dict[int, float]:
    """Return the near effect by horizon, where both curves reach it."""
    found = {}
    for horizon in HORIZONS:
        old, new = _log_loss(without, step + horizon), _log_loss(with_it, step + horizon)
        if old is not None and new is not None:
            found[horizon] = old - new
    return found


def _log_loss(curve: Curve, step: float) -> float | None:
    """Return the mean log validation loss of the three validations around a step; None if the curve ends before."""
    if not curve.step or curve.step[-1] < step:
        return None
    nearest = sorted(range(len(curve.step)), key=lambda i: abs(curve.step[i] - step))[:3]
    return float(np.mean([math.log(max(curve.validation[i], SMALLEST_LOSS)) for i in nearest]))


def _at_equal_compute(without: Curve, with_it: Curve, step: int) -> float | None:
    old = _log_loss(without, step)
    if old is None:
        return None
    compute = float(np.interp(step, without.step, without.compute))
    if not with_it.compute or with_it.compute[-1] < compute:
        return None
    new = _log_loss(with_it, float(np.interp(compute, with_it.compute, with_it.step)))
    return None if new is None else old - new
