"""Shedding: which layer-signals survive when more arrive than can be processed.

Each is kept with its own known probability: Poisson sampling, with an inclusion probability proportional to a weight
that grows with priority. An estimate over what was kept can therefore be weighted by 1 / survival (Horvitz-Thompson).
The draw is a function of the signal's id, so that the same signal under the same load is treated alike in a replay.
"""

import numpy as np
import numpy.typing as npt

SHARPNESS = 2.0  # a signal three deviations from its median weighs sixteen times one at the median


def survival(
    priority: npt.NDArray[np.float64], exempt: npt.NDArray[np.bool_], budget: float
) -> npt.NDArray[np.float64]:
    """Return the probability with which each layer-signal is kept.

    It is 1 for the exempt and min(1, c x (1 + priority)^2) for the others, with the c that makes all probabilities add
    up to the budget.

    Args:
        priority: [n], >= 0.
        exempt: [n], those never shed.
        budget: How many may be kept on average, the exempt included. It is exceeded if more are exempt.

    Returns:
        [n], 0..1.
    """
    result = np.ones(len(priority))
    weights = (1.0 + priority[~exempt]) ** SHARPNESS
    left = max(budget - float(exempt.sum()), 0.0)
    if left >= len(weights):
        return result
    heavy = np.sort(weights)[::-1]
    rest = np.cumsum(heavy[::-1])[::-1]  # rest[k]: the weight of all but the k heaviest
    certain = np.arange(len(heavy))
    # The smallest k for which the (k+1)-th heaviest stays below 1 once the k heaviest are kept for certain.
    k = int(np.argmax((left - certain) * heavy <= rest))
    result[~exempt] = np.minimum(1.0, weights * max(left - k, 0.0) / rest[k])
    return result


def draws(signal_id: str, rows: int) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for each row of a signal; a row is kept if its number is below its survival.

    Args:
        signal_id: Hexadecimal id of the signal, the seed of the numbers.
        rows: How many numbers.
    """
    generator = np.random.Generator(np.random.Philox(key=int(signal_id, 16)))
    return generator.random(rows)
