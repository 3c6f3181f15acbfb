"""Which layer-signals survive when more come than can be processed.

Each signal is kept with its own known probability (Poisson sampling, inclusion probability proportional to a weight
that grows with priority), so an estimate over what was kept can still be weighted by 1 / survival. The draw is a
function of the signal's id: the same signal under the same load meets the same fate.
"""

import numpy as np
import numpy.typing as npt

SHARPNESS = 2.0  # three deviations from the ordinary weigh sixteen times what is ordinary


def survival(
    priority: npt.NDArray[np.float64], exempt: npt.NDArray[np.bool_], budget: float
) -> npt.NDArray[np.float64]:
    """Return the probability with which each signal is kept: 1 for the exempt, the rest share what is left.

    Probabilities add up to `budget` where that is possible: min(1, c x (1 + priority)^2) with the one c that does it.

    Parameters
    ----------
    priority: [n], >= 0.
    exempt: [n], those never shed.
    budget: how many may be kept on average, the exempt included.
    """
    result = np.ones(len(priority))
    weights = (1.0 + priority[~exempt]) ** SHARPNESS
    left = max(budget - float(exempt.sum()), 0.0)
    if left >= len(weights):
        return result
    heavy = np.sort(weights)[::-1]
    rest = np.cumsum(heavy[::-1])[::-1]  # rest[k]: what all but the k heaviest weigh
    certain = np.arange(len(heavy))
    # The smallest k for which the (k+1)-th heaviest stays below 1 once the k heaviest are kept for certain.
    k = int(np.argmax((left - certain) * heavy <= rest))
    result[~exempt] = np.minimum(1.0, weights * max(left - k, 0.0) / rest[k])
    return result


def draws(signal_id: str, rows: int) -> npt.NDArray[np.float64]:
    """Return one number in [0, 1) for each row of a signal; a row is kept where it lies below its survival."""
    generator = np.random.Generator(np.random.Philox(key=int(signal_id, 16)))
    return generator.random(rows)
