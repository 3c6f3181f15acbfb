"""Statistics of one window's signals: count, mean, variance, minimum, maximum, last value and slope of every metric.

They are computed once, when the window closes, over its contributions in one fixed order (event time, then source), so
that every bit of the result is independent of the order in which they arrived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import STATISTICS, HealthSignals, ModelStats
from tamiyo.schemas.columns import Columns, Floats


@dataclass(slots=True)
class Contribution:
    """One signal inside a window, in compact form; nothing changes it (a frozen one takes twice as long to make)."""

    clock: int
    source: str
    step: int
    final: bool
    signal_id: str
    time_ms: int
    shed: int
    layers: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats
    """[names, layers], NaN where not measured."""
    model: Mapping[str, float]

    @classmethod
    def of(cls, signal: HealthSignals, clock: int, layers: tuple[str, ...]) -> "Contribution":
        """Extract what a window needs from a signal.

        Args:
            signal: The signal.
            clock: Where it counts on the run's clock, in steps or ms.
            layers: The signal's layers, in a copy that many signals share.
        """
        return cls(
            clock=clock,
            source=signal.source,
            step=signal.step,
            final=signal.final,
            signal_id=signal.signal_id,
            time_ms=signal.time_ms,
            shed=signal.shed,
            layers=layers,
            names=tuple(signal.columns.names),
            values=signal.matrix,
            model=signal.model_metrics,
        )

    @property
    def order(self) -> tuple[int, str, int, bool, str]:
        """Return the sort key among a window's contributions: a total order, independent of arrival."""
        return self.clock, self.source, self.step, self.final, self.signal_id


def layer_statistics(contributions: Sequence[Contribution], origin: int) -> tuple[list[str], Columns]:
    """Return the layers and the statistics of each layer metric.

    Args:
        contributions: The window's contributions, sorted by `order`.
        origin: A clock value near theirs. Slopes do not depend on it; it only keeps the digits of large clocks.

    Returns:
        The layers in order of first appearance, and the statistics by metric name in alphabetical order, each in the
        order of `STATISTICS` with one value a layer.
    """
    index: dict[str, int] = {}
    places: dict[tuple[str, ...], npt.NDArray[np.intp]] = {}
    for contribution in contributions:
        if contribution.layers not in places:
            place = [index.setdefault(layer, len(index)) for layer in contribution.layers]
            places[contribution.layers] = np.array(place, dtype=np.intp)
    reporting: dict[str, list[int]] = {}
    """The contributions with each metric. Metrics of one source share their frames: one pass does for all of them."""
    for number, contribution in enumerate(contributions):
        if contribution.layers:
            for name in contribution.names:
                reporting.setdefault(name, []).append(number)
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, numbers in reporting.items():
        groups.setdefault(tuple(numbers), []).append(name)
    names = sorted(reporting)
    cube = np.full((len(names), len(STATISTICS), len(index)), np.nan)
    cube[:, 0] = 0.0
    order = {name: number for number, name in enumerate(names)}
    for together, group in groups.items():
        pieces = [contributions[number] for number in together]
        clocks = [float(piece.clock - origin) for piece in pieces]
        rows = places[pieces[0].layers]
        if all(piece.layers is pieces[0].layers for piece in pieces) and len(set(rows.tolist())) == len(rows):
            found = _over_frames(np.stack([_of(piece, group) for piece in pieces]), np.array(clocks))
        else:
            values = np.concatenate([_of(piece, group) for piece in pieces], axis=1)
            layers = np.concatenate([places[piece.layers] for piece in pieces])
            rows, found = _by_layer(values, layers, np.repeat(clocks, [len(piece.layers) for piece in pieces]))
        members = np.array([order[name] for name in group])
        cube[members[:, None, None], np.arange(len(STATISTICS))[:, None], rows] = found
    return list(index), Columns.of(names, cube)


def _of(contribution: Contribution, names: Sequence[str]) -> Floats:
    """Return the values of some metrics, [names, layers]."""
    if contribution.names == tuple(names):
        return contribution.values
    return contribution.values[[contribution.names.index(name) for name in names]]


def model_statistics(contributions: Sequence[Contribution], origin: int) -> dict[str, ModelStats]:
    """Return the statistics of the whole model's metrics, by name in alphabetical order.

    Args:
        contributions: The window's contributions, sorted by `order`.
        origin: A clock value near theirs, as in `layer_statistics`.
    """
    reporting = [contribution for contribution in contributions if contribution.model]
    names = sorted({name for contribution in reporting for name in contribution.model})
    if not names:
        return {}
    values = np.array([[[contribution.model.get(name, np.nan)] for name in names] for contribution in reporting])
    found = _over_frames(values, np.array([float(contribution.clock - origin) for contribution in reporting]))
    # No value is beyond `LARGEST`, so every statistic is finite.
    return {
        name: ModelStats.of_checked(
            **dict(zip(STATISTICS, (int(count), *rest, None if slope != slope else slope), strict=True))
        )
        for name, (count, *rest, slope) in zip(names, found[:, :, 0].tolist(), strict=True)
    }


def _over_frames(values: Floats, clocks: Floats) -> Floats:
    """Return the statistics of frames of the same layers, each layer once.

    Variance is the population variance. The slope is that of least squares over the clock, a clock unit; it is NaN
    where a layer was measured at fewer than two distinct times. Sums run in the order of the frames, so that the same
    contributions give the same bits.

    Args:
        values: [frames, metrics, layers], NaN where not measured.
        clocks: [frames], its clock value.

    Returns:
        [metrics, statistics, layers] in the order of `STATISTICS`, NaN where a layer has none.
    """
    known = ~np.isnan(values)
    whole = known.all(axis=(0, 2))
    if whole.all():
        return _over_measured(values, clocks)
    result = np.empty((values.shape[1], len(STATISTICS), values.shape[2]))
    result[whole] = _over_measured(values[:, whole], clocks)
    result[~whole] = _over_known(values[:, ~whole], known[:, ~whole], clocks)
    return result


def _sums(terms: Floats) -> Floats:
    total: Floats = terms[0] + terms[1:].sum(axis=0)  # in the order of `np.add.reduceat`, for the same bits
    return total


def _over_measured(values: Floats, clocks: Floats) -> Floats:
    """Return what `_over_frames` does for values that were all measured."""
    frames = len(values)
    result = np.empty((values.shape[1], len(STATISTICS), values.shape[2]))
    mean = _sums(values) / frames
    offset = values - mean
    time_offset = (clocks - _sums(clocks) / frames)[:, None, None]
    several = clocks.min() < clocks.max()
    result[:, 0] = frames
    result[:, 1] = mean
    result[:, 2] = _sums(offset * offset) / frames
    result[:, 3] = values.min(axis=0)
    result[:, 4] = values.max(axis=0)
    result[:, 5] = values[-1]
    result[:, 6] = _sums(time_offset * offset) / _sums(time_offset * time_offset) if several else np.nan
    return result


def _over_known(values: Floats, known: npt.NDArray[np.bool_], clocks: Floats) -> Floats:
    """Return what `_over_frames` does where only the `known` values were measured."""
    count = known.sum(axis=0)
    divisor = np.maximum(count, 1)
    mean = _sums(np.where(known, values, 0.0)) / divisor
    offset = np.where(known, values - mean, 0.0)
    time = np.where(known, clocks[:, None, None], 0.0)
    time_offset = np.where(known, time - _sums(time) / divisor, 0.0)
    first, last_time = time.min(axis=0, where=known, initial=np.inf), time.max(axis=0, where=known, initial=-np.inf)
    several = first < last_time
    last = np.full(values.shape[1:], np.nan)
    for row, is_known in zip(values, known, strict=True):
        np.copyto(last, row, where=is_known)
    result = np.stack(
        [
            count,
            mean,
            _sums(offset * offset) / divisor,
            values.min(axis=0, where=known, initial=np.inf),
            values.max(axis=0, where=known, initial=-np.inf),
            last,
            _sums(time_offset * offset) / np.where(several, _sums(time_offset * time_offset), 1.0),
        ],
        axis=1,
    )
    result[:, 1:6] = np.where(count[:, None] > 0, result[:, 1:6], np.nan)
    result[:, 6] = np.where(several, result[:, 6], np.nan)
    return result


def _by_layer(values: Floats, rows: npt.NDArray[np.intp], clocks: Floats) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the layers among `rows`, and their statistics as `_over_frames` does, of frames whose layers differ.

    Sums run layer by layer in the order given.

    Args:
        values: [metrics, n], NaN where not measured.
        rows: [n], the layer of each column of `values`.
        clocks: [n], its clock value.

    Returns:
        The layers in order, and [metrics, statistics, layers] in the order of `STATISTICS`.
    """
    order = np.argsort(rows, kind="stable")
    rows, clocks, values = rows[order], clocks[order], values[:, order]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.diff(starts, append=len(rows))
    known = ~np.isnan(values)
    zeroed = np.where(known, values, 0.0)

    def sums(terms: Floats) -> Floats:
        return np.add.reduceat(terms, starts, axis=1)

    def spread(by_layer: Floats) -> Floats:
        return np.repeat(by_layer, lengths, axis=1)

    count = np.add.reduceat(known.astype(np.int64), starts, axis=1)
    divisor = np.maximum(count, 1)
    mean = sums(zeroed) / divisor
    offset = np.where(known, values - spread(mean), 0.0)
    variance = sums(offset * offset) / divisor
    time = np.where(known, clocks, 0.0)
    time_offset = np.where(known, clocks - spread(sums(time) / divisor), 0.0)
    time_square = sums(time_offset * time_offset)
    several = np.minimum.reduceat(np.where(known, clocks, np.inf), starts, axis=1) < np.maximum.reduceat(
        np.where(known, clocks, -np.inf), starts, axis=1
    )
    slope = sums(time_offset * offset) / np.where(several, time_square, 1.0)
    minimum = np.minimum.reduceat(np.where(known, values, np.inf), starts, axis=1)
    maximum = np.maximum.reduceat(np.where(known, values, -np.inf), starts, axis=1)
    place = np.maximum.reduceat(np.where(known, np.arange(len(rows)), -1), starts, axis=1)
    last = np.take_along_axis(values, np.maximum(place, 0), axis=1)
    result = np.stack([count, mean, variance, minimum, maximum, last, slope], axis=1)
    result[:, 1:6] = np.where(count[:, None] > 0, result[:, 1:6], np.nan)
    result[:, 6] = np.where(several, slope, np.nan)
    return rows[starts], result
