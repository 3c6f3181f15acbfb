"""Statistics of one window's signals: count, mean, variance, minimum, maximum, last value and slope of every metric.

They are computed once, when the window closes, over its contributions in one fixed order (event time, then source), so
that every bit of the result is independent of the order in which they arrived.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import HealthSignals, LayerStats, ModelStats

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One signal inside a window, in compact form."""

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
        names = tuple(signal.metrics)
        return cls(
            clock=clock,
            source=signal.source,
            step=signal.step,
            final=signal.final,
            signal_id=signal.signal_id,
            time_ms=signal.time_ms,
            shed=signal.shed,
            layers=layers,
            names=names,
            values=np.array([signal.metrics[name] for name in names], dtype=np.float64).reshape(
                len(names), len(layers)
            ),
            model=signal.model_metrics,
        )

    @property
    def order(self) -> tuple[int, str, int, bool, str]:
        """Return the sort key among a window's contributions: a total order, independent of arrival."""
        return self.clock, self.source, self.step, self.final, self.signal_id


def layer_statistics(contributions: Sequence[Contribution], origin: int) -> tuple[list[str], dict[str, LayerStats]]:
    """Return the layers and the statistics of each layer metric.

    Args:
        contributions: The window's contributions, sorted by `order`.
        origin: A clock value near theirs. Slopes do not depend on it; it only keeps the digits of large clocks.

    Returns:
        The layers in order of first appearance, and the statistics by metric name in alphabetical order, each column
        with one entry a layer.
    """
    index: dict[str, int] = {}
    for contribution in contributions:
        for layer in contribution.layers:
            index.setdefault(layer, len(index))
    parts: dict[str, list[tuple[Floats, npt.NDArray[np.intp], Floats]]] = {}
    for contribution in contributions:
        if not contribution.layers:
            continue
        rows = np.array([index[layer] for layer in contribution.layers], dtype=np.intp)
        clocks = np.full(len(rows), float(contribution.clock - origin))
        for name, column in zip(contribution.names, contribution.values, strict=True):
            parts.setdefault(name, []).append((column, rows, clocks))
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, pieces in parts.items():  # metrics of one source share their frames: one pass for all of them
        groups.setdefault(tuple(id(rows) for _, rows, _ in pieces), []).append(name)
    result: dict[str, LayerStats] = {}
    for names in groups.values():
        pieces = parts[names[0]]
        rows = np.concatenate([rows for _, rows, _ in pieces])
        clocks = np.concatenate([clocks for _, _, clocks in pieces])
        values = np.array([np.concatenate([column for column, _, _ in parts[name]]) for name in names])
        result.update(zip(names, _by_layer(values, rows, clocks, len(index)), strict=True))
    return list(index), {name: result[name] for name in sorted(result)}


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
    values = np.array([[contribution.model.get(name, np.nan) for contribution in reporting] for name in names])
    clocks = np.array([float(contribution.clock - origin) for contribution in reporting])
    statistics = _by_layer(values, np.zeros(len(reporting), dtype=np.intp), clocks, 1)
    return {
        name: ModelStats(
            count=stats.count[0],
            **{
                field: getattr(stats, field)[0] for field in ("mean", "variance", "minimum", "maximum", "last", "slope")
            },
        )
        for name, stats in zip(names, statistics, strict=True)
    }


def _by_layer(values: Floats, rows: npt.NDArray[np.intp], clocks: Floats, layers: int) -> list[LayerStats]:
    """Return the statistics of each metric, one entry a layer.

    Variance is the population variance. The slope is that of least squares over the clock, a clock unit; it is None
    where a layer was measured at fewer than two distinct times. Sums run layer by layer in the order given, so that
    the same contributions give the same bits.

    Args:
        values: [metrics, n], NaN where not measured.
        rows: [n], the layer of each column of `values`.
        clocks: [n], its clock value.
        layers: How many layers there are.
    """
    order = np.argsort(rows, kind="stable")
    rows, clocks, values = rows[order], clocks[order], values[:, order]
    present, starts = np.unique(rows, return_index=True)
    lengths = np.diff(np.append(starts, len(rows)))
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

    result = []
    for metric in range(len(values)):
        seen = count[metric] > 0

        def column(numbers: Floats, valid: npt.NDArray[np.bool_]) -> list[float | None]:
            full: list[float | None] = [None] * layers
            for layer, value, is_valid in zip(present.tolist(), numbers.tolist(), valid.tolist(), strict=True):
                if is_valid:
                    full[layer] = value
            return full

        counts = [0] * layers
        for layer, seen_here in zip(present.tolist(), count[metric].tolist(), strict=True):
            counts[layer] = seen_here
        result.append(
            LayerStats(
                count=counts,
                mean=column(mean[metric], seen),
                variance=column(variance[metric], seen),
                minimum=column(minimum[metric], seen),
                maximum=column(maximum[metric], seen),
                last=column(last[metric], seen),
                slope=column(slope[metric], several[metric]),
            )
        )
    return result
