"""The health score of a layer, by the formula of the specification's collection section.

health = 0.4 x (1 - min(latency / 10 ms, 1)) + 0.4 x (1 - min(5 x errors / max(executions, 1), 1)) + 0.2 x hit rate
"""

import numpy as np
import numpy.typing as npt

EXECUTION_WEIGHT = 0.4
ERROR_WEIGHT = 0.4
CACHE_WEIGHT = 0.2
WORST_LATENCY_MS = 10.0
ERROR_FACTOR = 5.0  # one error in five executions is the worst that counts


def health_score(
    latency_ms: npt.ArrayLike, errors: npt.ArrayLike, executions: npt.ArrayLike, hit_rate: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return the health score of each layer, elementwise over four arrays of one shape.

    Args:
        latency_ms: Forward latency, ms, >= 0.
        errors: Errors of the layer's executions, >= 0.
        executions: Executions among which the errors were counted, >= 0.
        hit_rate: Kernel cache hits / look-ups, 0..1.

    Returns:
        Scores from 0 (worst) to 1.
    """
    latency = np.asarray(latency_ms, dtype=np.float64)
    error_rate = np.asarray(errors, dtype=np.float64) / np.maximum(np.asarray(executions, dtype=np.float64), 1.0)
    # Not np.clip: it takes three times as long for a few layers, and nothing here is negative.
    cache = np.minimum(np.asarray(hit_rate, dtype=np.float64), 1.0)
    execution = 1.0 - np.minimum(latency / WORST_LATENCY_MS, 1.0)
    correctness = 1.0 - np.minimum(ERROR_FACTOR * error_rate, 1.0)
    score = EXECUTION_WEIGHT * execution + ERROR_WEIGHT * correctness + CACHE_WEIGHT * cache
    bounded: npt.NDArray[np.float64] = np.minimum(score, 1.0)  # rounding may lift the weights' sum above 1
    return bounded
