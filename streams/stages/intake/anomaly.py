"""How unusual a layer's metrics are: the robust deviation from its own last frames.

deviation = |x - median| / (1.4826 MAD + eps), over the last `frames` values of one layer and metric, x not among
them. The factor 1.4826 makes the median absolute deviation (MAD) estimate a normal distribution's standard deviation.
Unlike a mean and a variance, median and MAD withstand bursts and jumps.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.columns import Floats
from tamiyo.schemas.record import MAX_LAYERS

MAD_TO_SIGMA = 1.4826
RELATIVE_EPSILON = 1e-3  # of the median: a metric constant so far may vary by a thousandth before it is unusual
ABSOLUTE_EPSILON = 1e-9  # keeps the scale above 0 for a metric that was constantly 0
ROWS_TOGETHER = 512  # computed at a time: enough to hide the cost of a call, few enough for a processor's cache
HIGHEST = 100.0  # the bound on a deviation, and the priority of errors: a hundred deviations are beyond doubt


@dataclass(frozen=True, slots=True)
class Measured:
    """What one frame measured."""

    run_id: str
    source: str
    """The frame's topic."""
    layers: Sequence[str]
    """The layer of each row."""
    values: Floats
    """[rows, metrics]; NaN where not measured, which counts as no deviation."""
    final: bool = False
    """Whether it is the run's last frame of this source."""


class RunDeviations:
    """The rolling deviation of each layer of every run, by source: only a source's frames are in order.

    A layer that appears in several rows of a frame (one a seed) has a history for its first row, its second, and so on.

    Args:
        frames: How many last values of a layer and metric are remembered.
        minimum: Values below which nothing counts as unusual.
        cells: Most values remembered; beyond it, the runs and sources that have been idle longest are forgotten.
    """

    def __init__(self, *, frames: int = 64, minimum: int = 8, cells: int = 64_000_000) -> None:
        self._frames = frames
        self._minimum = minimum
        self._most = cells
        self._rings: dict[tuple[str, int], _Rings] = {}
        """By source and number of metrics."""
        self._runs: OrderedDict[tuple[str, str], _RunRows] = OrderedDict()
        """By run and source, the longest idle first."""

    @property
    def cells(self) -> int:
        """Return how many values are remembered, of 4 bytes each."""
        return sum(run.cells for run in self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    def update(self, measured: Sequence[Measured]) -> list[Floats]:
        """Return the largest deviation of each row over its metrics, and remember the values.

        Frames of different runs are computed together, those of one run and source one after the other.

        Args:
            measured: Frames, those of one run and source in order.

        Returns:
            For each frame [rows], 0..`HIGHEST`.
        """
        result: list[Floats] = [np.empty(0)] * len(measured)
        rounds: list[dict[tuple[str, int], list[int]]] = []
        nth: dict[tuple[str, str], int] = {}
        for number, frame in enumerate(measured):
            key = frame.run_id, frame.source
            place = nth[key] = nth.get(key, -1) + 1
            if place == len(rounds):
                rounds.append({})
            rounds[place].setdefault((frame.source, frame.values.shape[1]), []).append(number)
        for together in rounds:
            for kind, numbers in together.items():
                size = max(1, ROWS_TOGETHER // max(1, len(measured[numbers[0]].layers)))
                for start in range(0, len(numbers), size):
                    some = numbers[start : start + size]
                    for number, deviation in zip(some, self._round(kind, [measured[n] for n in some]), strict=True):
                        result[number] = deviation
        return result

    def forget(self, run_id: str, source: str) -> None:
        """Forget a run's values of a source."""
        run = self._runs.pop((run_id, source), None)
        if run is not None:
            run.rings.release(run.rows)

    def _round(self, kind: tuple[str, int], frames: Sequence[Measured]) -> Sequence[Floats]:
        """Return the deviations of frames of one source, at most one of each run."""
        rings = self._rings.get(kind)
        if rings is None:
            rings = self._rings[kind] = _Rings(kind[1], self._frames, self._minimum)
        rows = [self._run(rings, frame).rows_of(frame.layers) for frame in frames]
        ends = list(accumulate(map(len, rows)))
        found = rings.update(np.concatenate(rows), np.concatenate([frame.values for frame in frames]))
        for frame in frames:
            if frame.final:
                self.forget(frame.run_id, frame.source)
        self._forget_excess(len(frames))
        return np.split(found, ends[:-1])

    def _run(self, rings: "_Rings", frame: Measured) -> "_RunRows":
        """Return the rows of a frame's run and source, now the one active last."""
        key = frame.run_id, frame.source
        run = self._runs.get(key)
        if run is not None and (run.rings is not rings or len(run.rows) > MAX_LAYERS):
            self.forget(*key)  # no network changes its layers with every frame
            run = None
        if run is None:
            run = self._runs[key] = _RunRows(rings)
        self._runs.move_to_end(key)
        return run

    def _forget_excess(self, active: int) -> None:
        """Forget the longest idle beyond the bound, but for the last `active`."""
        excess = sum(rings.cells for rings in self._rings.values()) - self._most
        while excess > 0 and len(self._runs) > active:
            key = next(iter(self._runs))
            excess -= self._runs[key].cells
            self.forget(*key)


class _RunRows:
    """Which rows of the rings the layers of one run and source have."""

    __slots__ = ("_last_layers", "_last_rows", "_slots", "rings", "rows")

    def __init__(self, rings: "_Rings") -> None:
        self.rings = rings
        self.rows: list[int] = []
        self._slots: dict[tuple[str, int], int] = {}
        self._last_layers: list[str] = []
        self._last_rows: npt.NDArray[np.intp] = np.empty(0, dtype=np.intp)

    @property
    def cells(self) -> int:
        return len(self.rows) * self.rings.cells_a_row

    def rows_of(self, layers: Sequence[str]) -> npt.NDArray[np.intp]:
        """Return the row of each layer; a layer seen for the first time gets an empty one."""
        if layers == self._last_layers:  # nearly all frames of a run name the same layers
            return self._last_rows
        nth: dict[str, int] = {}
        rows = []
        for layer in layers:
            occurrence = nth.get(layer, 0)
            nth[layer] = occurrence + 1
            key = layer, occurrence
            if key not in self._slots:
                self._slots[key] = self.rings.take()
                self.rows.append(self._slots[key])
            rows.append(self._slots[key])
        self._last_layers, self._last_rows = list(layers), np.array(rows, dtype=np.intp)
        return self._last_rows


class _Rings:
    """The last values of many rows: [rows, metrics, frames], NaN where nothing was measured."""

    def __init__(self, metrics: int, frames: int, minimum: int) -> None:
        self._minimum = minimum
        self._frames = frames
        self.cells_a_row = metrics * frames
        # float32 sorts three times as fast as float64.
        self._values: npt.NDArray[np.float32] = np.empty((0, metrics, frames), dtype=np.float32)
        self._known: npt.NDArray[np.int64] = np.empty((0, metrics), dtype=np.int64)
        """How many values of each metric are remembered, [rows, metrics]: counting them each time costs as much as the
        sorting."""
        self._seen: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._free: list[int] = []

    @property
    def cells(self) -> int:
        """Return how many values the rows in use remember."""
        return (len(self._seen) - len(self._free)) * self.cells_a_row

    def take(self) -> int:
        """Return an empty row."""
        if not self._free:
            size = len(self._seen)
            fresh = np.full((max(size // 2, 8), *self._values.shape[1:]), np.nan, dtype=np.float32)
            self._values = np.concatenate([self._values, fresh])
            self._known = np.concatenate([self._known, np.zeros(fresh.shape[:2], dtype=np.int64)])
            self._seen = np.concatenate([self._seen, np.zeros(len(fresh), dtype=np.int64)])
            self._free = list(range(size + len(fresh) - 1, size - 1, -1))
        return self._free.pop()

    def release(self, rows: Sequence[int]) -> None:
        """Empty rows, so that they can be taken again."""
        self._values[rows] = np.nan
        self._seen[rows] = 0
        self._known[rows] = 0
        self._free += rows
        if len(self._free) == len(self._seen):
            self._values, self._known, self._seen = (
                self._values[:0].copy(),
                self._known[:0].copy(),
                self._seen[:0].copy(),
            )
            self._free = []

    def update(self, rows: npt.NDArray[np.intp], values: Floats) -> Floats:
        """Return the largest deviation of each row, and remember the values; no row appears twice."""
        seen, known = self._seen[rows], self._known[rows]
        filled = min(max(int(seen.max(initial=1)), 1), self._frames)  # what is behind the fullest row is NaN
        with np.errstate(over="ignore", invalid="ignore"):  # above 3.4e38 float32 is infinite: unusual enough
            current = values.astype(np.float32)
            if filled < self._minimum:
                deviation = np.zeros(len(rows))
            else:
                deviation = self._deviation(self._values[rows, :, :filled], known, current)
        place = seen % self._frames
        known += ~np.isnan(current)
        if filled == self._frames:  # before that, nothing is overwritten
            known -= ~np.isnan(self._values[rows, :, place])
        self._known[rows] = known
        self._values[rows, :, place] = current
        self._seen[rows] = seen + 1
        return deviation

    def _deviation(
        self, history: npt.NDArray[np.float32], known: npt.NDArray[np.int64], current: npt.NDArray[np.float32]
    ) -> Floats:
        history.sort(axis=-1)  # in place: fancy indexing has made a copy; NaN goes last
        median = _middle(history, known)
        spread = np.subtract(history, median[..., None], out=history)
        np.abs(spread, out=spread).sort(axis=-1)
        scale = MAD_TO_SIGMA * _middle(spread, known) + RELATIVE_EPSILON * np.abs(median) + ABSOLUTE_EPSILON
        deviation = (np.abs(current - median) / scale).astype(np.float64)
        deviation[(known < self._minimum) | np.isnan(deviation)] = 0.0
        result: Floats = np.minimum(deviation.max(axis=-1, initial=0.0), HIGHEST)
        return result


def _middle(ordered: npt.NDArray[np.float32], known: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Return the median along the last axis, whose first `known` entries are sorted and the rest NaN."""
    width = ordered.shape[-1]
    begin = np.arange(0, ordered.size, width).reshape(known.shape)
    flat, half = ordered.reshape(-1), np.float32(0.5)  # before adding: the sum of two large values may not fit
    low, high = begin + np.maximum((known - 1) // 2, 0), begin + np.minimum(known // 2, width - 1)
    pair: npt.NDArray[np.float32] = half * flat[low] + half * flat[high]
    return pair
