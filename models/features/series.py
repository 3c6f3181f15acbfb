"""A run's last windows as arrays: a row per window, oldest first, a column per layer; NaN means not measured."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import HealthWindow

Array = npt.NDArray[np.float64]


class Series:
    """Metrics of a run's windows by name."""

    def __init__(self, windows: Sequence[HealthWindow], layers: Sequence[str]) -> None:
        """Take the windows as they are; nothing is copied.

        Args:
            windows: At least one, oldest first; the last is the current one.
            layers: Layer ids in the order of the arrays.
        """
        self.windows = windows
        self.layers = layers
        self._rows: dict[int, npt.NDArray[np.intp]] = {}

    def window(self, position: int, metric: str, statistic: str = "mean") -> Array:
        """Return one window's value of each layer.

        Args:
            position: Index of the window; -1 is the current one.
            metric: Name of the metric.
            statistic: A field of LayerStats.

        Returns:
            [layers]; NaN where the window has no value.
        """
        window = self.windows[position]
        stats = window.metrics.get(metric)
        if stats is None:
            return np.full(len(self.layers), np.nan)
        rows = self._rows.get(id(window))
        if rows is None:
            place = {layer: row for row, layer in enumerate(window.layer_id)}
            rows = np.array([place.get(layer, -1) for layer in self.layers], dtype=np.intp)
            self._rows[id(window)] = rows
        column: Array = getattr(stats, statistic)
        return np.where(rows >= 0, column[rows], np.nan) if len(column) else np.full(len(rows), np.nan)

    def history(self, metric: str, statistic: str = "mean") -> Array:
        """Return every window's value of each layer.

        Args:
            metric: Name of the metric.
            statistic: A field of LayerStats.

        Returns:
            [windows, layers]; NaN where a window has no value.
        """
        return np.stack([self.window(position, metric, statistic) for position in range(len(self.windows))])

    def newest(self, metric: str, statistic: str = "last") -> Array:
        """Return each layer's newest measured value.

        Args:
            metric: Name of the metric.
            statistic: A field of LayerStats.

        Returns:
            [layers]; NaN where no window has a value.
        """
        found = self.window(-1, metric, statistic)
        for position in range(len(self.windows) - 2, -1, -1):
            if not np.isnan(found).any():
                break
            found = np.where(np.isnan(found), self.window(position, metric, statistic), found)
        return found

    def model(self, metric: str, statistic: str = "mean") -> Array:
        """Return a metric of the whole model.

        Args:
            metric: Name of the metric.
            statistic: A field of ModelStats.

        Returns:
            [windows]; NaN where a window has no value.
        """
        stats = [window.model_metrics.get(metric) for window in self.windows]
        return np.array([np.nan if s is None else getattr(s, statistic) for s in stats], dtype=np.float64)


def newest(values: Array) -> float:
    """Return the last entry that is not NaN.

    Args:
        values: [windows].

    Returns:
        The entry; NaN if there is none.
    """
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else float("nan")


def slope(values: Array) -> Array:
    """Return the least-squares slope along the first axis.

    Entries are scaled before they are squared, so that the largest floats do not overflow.

    Args:
        values: [windows, ...]; NaN entries are left out.

    Returns:
        Change per window, [...]; NaN below two known entries.

    Example:
        >>> float(slope(np.array([1.0, np.nan, 5.0])))
        2.0
    """
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    scale = np.maximum(np.max(np.abs(values), axis=0, where=known, initial=0.0), np.finfo(np.float64).tiny)
    position = np.arange(len(values), dtype=np.float64).reshape(-1, *[1] * (values.ndim - 1))
    y = np.where(known, values / scale, 0.0)
    divisor = np.maximum(count, 1)
    centred = np.where(known, position - np.where(known, position, 0.0).sum(axis=0) / divisor, 0.0)
    spread = (centred**2).sum(axis=0)
    with np.errstate(over="ignore"):
        fitted = (centred * y).sum(axis=0) / np.where(count < 2, 1.0, spread) * scale
    return np.where(count < 2, np.nan, fitted)


def relative_slope(values: Array) -> Array:
    """Return the slope relative to the mean absolute value.

    Args:
        values: [windows, ...]; NaN entries are left out.

    Returns:
        Share per window, [...]; NaN below two known entries, 0 if all are 0.
    """
    known = ~np.isnan(values)
    scale = np.max(np.abs(values), axis=0, where=known, initial=0.0)
    unit = np.where(scale > 0, scale, 1.0)
    mean = np.where(known, np.abs(values / unit), 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return slope(values / unit) / np.where(mean > 0, mean, 1.0)


def streak(values: Array, flags: npt.NDArray[np.bool_]) -> Array:
    """Return the length of the run of flagged entries at the end of the first axis.

    Args:
        values: [windows, ...]; a NaN entry neither counts nor ends the run.
        flags: Bool, of the same shape.

    Returns:
        Entries, [...].
    """
    unbroken = np.cumprod((flags | np.isnan(values))[::-1], axis=0)
    return np.asarray((unbroken * flags[::-1]).sum(axis=0), dtype=np.float64)
