"""How unusual a layer's metrics are: the robust deviation from its own last frames.

deviation = |x - median| / (1.4826 MAD + eps), over the last `frames` values of one layer and metric, x not among
them. The factor 1.4826 makes the median absolute deviation (MAD) estimate a normal distribution's standard deviation.
Unlike a mean and a variance, median and MAD withstand bursts and jumps.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAD_TO_SIGMA = 1.4826
RELATIVE_EPSILON = 1e-3  # of the median: a metric constant so far may vary by a thousandth before it is unusual
ABSOLUTE_EPSILON = 1e-9  # keeps the scale above 0 for a metric that was constantly 0
HIGHEST = 100.0  # the bound on a deviation, and the priority of errors: a hundred deviations are beyond doubt


class RollingDeviation:
    """The rolling deviation of each layer, over one run's frames of one source.

    A layer that appears in several rows of a frame (one a seed) has a history for its first row, its second, and so on.

    Args:
        metrics: How many metrics each row has.
        frames: How many last values of a layer and metric are remembered.
        minimum: Values below which nothing counts as unusual.
    """

    def __init__(self, metrics: int, *, frames: int = 64, minimum: int = 8) -> None:
        self._metrics = metrics
        self._frames = frames
        self._minimum = minimum
        self._slots: dict[tuple[str, int], int] = {}
        self._last_layers: tuple[str, ...] = ()
        self._last_rows: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)
        # [slots, metrics, frames] rings, NaN where nothing was measured; float32 sorts three times as fast.
        self._ring: npt.NDArray[np.float32] = np.empty((0, metrics, frames), dtype=np.float32)
        self._seen: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def cells(self) -> int:
        """Return how many values are remembered, of 4 bytes each."""
        return self._ring.size

    @property
    def layers(self) -> int:
        """Return how many rows are remembered."""
        return len(self._slots)

    def update(self, layers: Sequence[str], values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each row's largest deviation over its metrics, then remember the values.

        Args:
            layers: The layer of each row.
            values: [rows, metrics]; NaN where not measured, which counts as no deviation.

        Returns:
            [rows], 0..`HIGHEST`.
        """
        rows = self._rows(tuple(layers))
        with np.errstate(over="ignore", invalid="ignore"):  # above 3.4e38 float32 is infinite: unusual enough
            current = values.astype(np.float32)
            deviation = self._deviation(self._ring[rows], current)
        self._ring[rows, :, self._seen[rows] % self._frames] = current
        self._seen[rows] += 1
        return deviation

    def _deviation(self, history: npt.NDArray[np.float32], current: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        history.sort(axis=-1)  # in place: fancy indexing has made a copy; NaN goes last
        known = self._frames - np.isnan(history).sum(axis=-1)
        median = _middle(history, known)
        spread = np.abs(history - median[..., None])
        spread.sort(axis=-1)
        scale = MAD_TO_SIGMA * _middle(spread, known) + RELATIVE_EPSILON * np.abs(median) + ABSOLUTE_EPSILON
        deviation = (np.abs(current - median) / scale).astype(np.float64)
        deviation[(known < self._minimum) | np.isnan(deviation)] = 0.0
        result: npt.NDArray[np.float64] = np.minimum(deviation.max(axis=-1, initial=0.0), HIGHEST)
        return result

    def _rows(self, layers: tuple[str, ...]) -> npt.NDArray[np.intp]:
        if layers == self._last_layers:  # nearly all frames of a run name the same layers
            return self._last_rows
        nth: dict[str, int] = {}
        rows = []
        for layer in layers:
            occurrence = nth.get(layer, 0)
            nth[layer] = occurrence + 1
            rows.append(self._slots.setdefault((layer, occurrence), len(self._slots)))
        missing = len(self._slots) - len(self._seen)
        if missing:
            fresh = np.full((missing, self._metrics, self._frames), np.nan, dtype=np.float32)
            self._ring = np.concatenate([self._ring, fresh])
            self._seen = np.concatenate([self._seen, np.zeros(missing, dtype=np.int64)])
        self._last_layers, self._last_rows = layers, np.array(rows, dtype=np.intp)
        return self._last_rows


def _middle(ordered: npt.NDArray[np.float32], known: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Return the median along the last axis, whose first `known` entries are sorted and the rest NaN."""
    low = np.maximum((known - 1) // 2, 0)[..., None]
    high = np.minimum(known // 2, ordered.shape[-1] - 1)[..., None]
    half = np.float32(0.5)  # before adding: the sum of two large values may not fit
    pair: npt.NDArray[np.float32] = half * np.take_along_axis(ordered, low, -1) + half * np.take_along_axis(
        ordered, high, -1
    )
    return pair[..., 0]
