"""The scales that features share, and the bounds of every feature."""

import numpy as np
import numpy.typing as npt

LIMIT = 10.0
"""Every feature lies within +-LIMIT: a corrupt measurement must not saturate the network."""

Array = npt.NDArray[np.float64]


def bounded(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return `values` as float32 within +-LIMIT: NaN becomes 0, infinities become the limit.

    Args:
        values: Numbers of any shape.

    Returns:
        A float32 array of the same shape.

    Example:
        >>> bounded([0.5, float("nan"), float("-inf"), 1e300]).tolist()
        [0.5, 0.0, -10.0, 10.0]
    """
    array = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0, posinf=LIMIT, neginf=-LIMIT)
    return np.clip(array, -LIMIT, LIMIT).astype(np.float32)


def log10_above(values: npt.ArrayLike, offset: float) -> Array:
    """Return log10(max(x, 0) + offset); NaN stays NaN.

    Args:
        values: Numbers of any shape; a negative one counts as 0.
        offset: Added before the logarithm, > 0: the value that 0 is drawn as.

    Example:
        >>> log10_above([0.0, 99.0], 1.0).tolist()
        [0.0, 2.0]
    """
    return np.log10(np.maximum(np.asarray(values, dtype=np.float64), 0.0) + offset)


def signed_log(values: npt.ArrayLike) -> Array:
    """Return sign(x) ln(1 + |x|), which keeps the sign and compresses large values.

    Args:
        values: Numbers of any shape.

    Example:
        >>> float(signed_log(-(np.e - 1)))
        -1.0
    """
    array = np.asarray(values, dtype=np.float64)
    return np.sign(array) * np.log1p(np.abs(array))


def known_or(values: Array, default: float) -> Array:
    """Return values with a default in place of NaN.

    Args:
        values: Numbers of any shape.
        default: The replacement.
    """
    return np.where(np.isnan(values), default, values)
