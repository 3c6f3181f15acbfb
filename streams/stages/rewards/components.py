"""The six components of a reward, each a pure function, and their weighted sum.

Names, weights and formulas are the specification's (docs, specification, "Reward"), except that every component is
relative to doing nothing, so that no_op earns exactly 0: where a formula rewards a state rather than a change (a
latency under half a millisecond), the value of the unchanged state is subtracted. Cost and risk are never negative;
their weights are.
"""

import math
from collections.abc import Mapping
from typing import Final

ACCURACY: Final = "accuracy_improvement"
SPEED: Final = "speed_improvement"
MEMORY: Final = "memory_efficiency"
STABILITY: Final = "stability_improvement"
COST: Final = "adaptation_cost"
RISK: Final = "risk_penalty"

WEIGHTS: Final[Mapping[str, float]] = {
    ACCURACY: 1.0,
    SPEED: 0.6,
    MEMORY: 0.4,
    STABILITY: 0.8,
    COST: -0.3,
    RISK: -0.5,
}
NOTHING: Final[Mapping[str, float]] = dict.fromkeys(WEIGHTS, 0.0)

GAIN_UNIT = math.log(1.25)  # a loss reduced by a fifth has the value 1
ACCURACY_BOUND = 3.0  # a loss halved; beyond it tanh is flat anyway
SPEED_BOUND = 1.0  # no slowdown may outweigh a loss reduced by half

# The specification's execution layer runs a kernel forward in under half a millisecond; backward takes about twice as
# long. A slowdown within that is the price of the kernel's operators, whatever the network's size, and is charged as
# cost; only the rest reduces the speed. Without this allowance no kernel could pay on a step of 1 ms.
FORWARD_ALLOWANCE_MS = 0.5
STEP_ALLOWANCE_MS = 3 * FORWARD_ALLOWANCE_MS

FIXED_COST = 0.2  # every adaptation disturbs training, so one without effect must lose something
RENT_COST = 0.2  # for parameters that use the whole budget
LATENCY_COST = 0.2  # for a step twice as slow

REFUSED_RISK = 0.1  # weighted -0.05: enough to prefer what a host accepts, too little to teach the policy never to act
VETOED_RISK = 0.1
FAILED_RISK = 0.2
RECOVERY_RISK = 0.25  # weighted -.125: above what a recovery earns as stability (2 x .05 x .8 = .08)
UNCERTAINTY_RISK = 0.1
ERROR_SLOPE = 5.0  # as in the health score: one error in five executions is the worst case


def accuracy_improvement(gain: float) -> float:
    """Return gain / log(1.25), in [-3, 3]; the gain is log(loss without the adaptation / loss with it)."""
    return max(-ACCURACY_BOUND, min(ACCURACY_BOUND, gain / GAIN_UNIT))


def speed_improvement(before: float, after: float) -> float:
    """Return the specification's speed term.

    (before - after) / before, or 0 if before is 0; + 0.2 if after < 0.5 ms, else + 0.1 if after < 1 ms; - 0.5 if
    slower by more than 10 %.

    Args:
        before: Latency before the adaptation, in ms.
        after: Latency after it, in ms.
    """
    if before <= 0:
        return 0.0
    value = (before - after) / before
    if after < 0.5:
        value += 0.2
    elif after < 1.0:
        value += 0.1
    if after > 1.1 * before:
        value -= 0.5
    return value


def relative_speed(before: float, after: float, *, noise: float = 0.0, allowance_ms: float = 0.0) -> float:
    """Return the speed term less that of an unchanged latency, in [-1, 1].

    Args:
        before: Latency before the adaptation, in ms.
        after: Latency after it, in ms.
        noise: Relative change within which the term is 0: latencies vary on a shared machine.
        allowance_ms: Slowdown that does not count, in ms.
    """
    if before <= 0 or abs(after - before) <= noise * before:
        return 0.0
    if after > before:
        after = max(before, after - allowance_ms)
    value = speed_improvement(before, after) - speed_improvement(before, before)
    return max(-SPEED_BOUND, min(SPEED_BOUND, value))


def stability_improvement(
    error_rate_before: float, error_rate_after: float, recovery_rate: float | None, latency_variance: float
) -> float:
    """Return the specification's stability term.

    2 x max(0, error rate before - after) + 2 x (recovery success rate - 0.95) - min(latency variance / 10, 0.5).

    Args:
        error_rate_before: Errors an execution before the adaptation, in 0..1.
        error_rate_after: The same after it.
        recovery_rate: Share of recoveries that succeeded; None if there were none, which counts as 0.
        latency_variance: In ms squared.
    """
    recovery = 0.0 if recovery_rate is None else 2.0 * (recovery_rate - 0.95)
    return 2.0 * max(0.0, error_rate_before - error_rate_after) + recovery - min(latency_variance / 10.0, 0.5)


def relative_stability(
    error_rate_before: float,
    error_rate_after: float,
    recovery_rate: float | None,
    latency_variance_before: float,
    latency_variance_after: float,
) -> float:
    """Return the stability term less that of an unchanged state."""
    after = stability_improvement(error_rate_before, error_rate_after, recovery_rate, latency_variance_after)
    return after - stability_improvement(0.0, 0.0, None, latency_variance_before)


def memory_efficiency(parameters_added: int, parameter_budget: int) -> float:
    """Return the share of the budget that was freed (positive) or taken (negative), in [-1, 1]."""
    return max(-1.0, min(1.0, -parameters_added / max(parameter_budget, 1)))


def adaptation_cost(parameters_added: int, parameter_budget: int, latency_share: float) -> float:
    """Return the cost of an executed adaptation, in 0.2..0.6: a fixed part, its parameters, and its latency.

    Args:
        parameters_added: Counts as log(1 + parameters) / log(1 + budget), in 0..1.
        parameter_budget: Parameters by which the run may grow in all.
        latency_share: Relative slowdown of a step; counts in 0..1.
    """
    rent = math.log1p(max(parameters_added, 0)) / math.log1p(max(parameter_budget, 1))
    return FIXED_COST + RENT_COST * min(rent, 1.0) + LATENCY_COST * max(0.0, min(latency_share, 1.0))


def risk_penalty(error_rate_before: float, error_rate_after: float, recoveries: int, uncertainty: float) -> float:
    """Return the risk of an executed adaptation, in 0..1.

    Args:
        error_rate_before: Errors an execution before the adaptation, in 0..1.
        error_rate_after: The same after it; an increase counts five times.
        recoveries: How many errors the layer had to recover from.
        uncertainty: Of the policy's predicted reward, in 0..1.
    """
    errors = ERROR_SLOPE * max(0.0, error_rate_after - error_rate_before)
    recovery = RECOVERY_RISK if recoveries else 0.0
    return min(1.0, errors + recovery + UNCERTAINTY_RISK * uncertainty)


def weighted_sum(components: Mapping[str, float]) -> float:
    """Return the weighted sum of the components; raises KeyError for a name without a weight."""
    return sum((WEIGHTS[name] * value for name, value in components.items()), 0.0)


def total(components: Mapping[str, float]) -> float:
    """Return tanh of the weighted sum, in [-1, 1]."""
    return math.tanh(weighted_sum(components))
