"""The layers of a run over time: what the host measured, and the health that the graphs have."""

from collections.abc import Sequence

import numpy as np

from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.streams.watch.history.frames import GRAPH_ROWS, MEASUREMENTS, Rows
from tamiyo.streams.watch.history.timeline import Timeline

MAX_FRAMES = 400  # columns of the heat map
MAX_CELLS = 40_000  # layers times frames of one run: a network of 1,000 layers keeps 40 frames
FEWEST_FRAMES = 4


class LayerHistory:
    """Frames of measurements and of health, each with one entry a layer in the order of `names`."""

    def __init__(self) -> None:
        """Know no layer."""
        self.names: list[str] = []
        self._places: dict[str, int] = {}
        self.measured = Timeline({"rows": ""}, limit=MAX_FRAMES)
        self.graphs = Timeline({"rows": ""}, limit=MAX_FRAMES)
        self.rewritten = 0
        """Revision of the last change of frames that were there before."""

    @property
    def cells(self) -> int:
        """Numbers kept."""
        frames = len(MEASUREMENTS) * len(self.measured) + len(GRAPH_ROWS) * len(self.graphs)
        return frames * max(1, len(self.names))

    @property
    def by_graph(self) -> bool:
        """Whether the heat map has a column for each graph, and not for each frame of measurements."""
        return len(self.graphs) > 0

    def begin(self, names: Sequence[str], revision: int) -> None:
        """Take the layers of a topology, in its order; frames of other layers are dropped."""
        if list(names) == self.names:
            return
        if set(names) == set(self.names):
            order = [self._places[name] for name in names]
            for series in (self.measured, self.graphs):
                rows = series.columns["rows"]
                rows[:] = [_widened(each, len(self.names))[:, order] for each in rows]
        else:
            self.measured.clear(revision)
            self.graphs.clear(revision)
        self.names = list(names)
        self._places = {name: place for place, name in enumerate(self.names)}
        self.rewritten = revision

    def add_measured(self, names: Sequence[str], rows: Rows, step: int, time_ms: int, revision: int) -> None:
        """Take a frame of measurements, [MEASUREMENTS, layers]."""
        rows = self._ordered(names, rows)
        series = self.measured
        if len(series) and time_ms >= series.times[-1] and step > series.steps[-1]:
            rows = _carried(_widened(series.columns["rows"][-1], rows.shape[1]), rows)
        late = bool(len(self.graphs)) and step <= self.graphs.steps[-1]
        self._add(series, step, time_ms, revision, rows)
        if late:  # columns with this frame's values were shown without them
            self.rewritten = revision

    def add_graph(self, names: Sequence[str], rows: Rows, step: int, time_ms: int, revision: int) -> None:
        """Take the health of a graph, [GRAPH_ROWS, layers]."""
        if not self.by_graph:
            self.rewritten = revision
        self._add(self.graphs, step, time_ms, revision, self._ordered(names, rows))

    def thin(self, revision: int) -> None:
        """Keep half of the frames."""
        for series in (self.measured, self.graphs):
            if len(series) > FEWEST_FRAMES:
                series.thin(revision)

    def frame(self, series: Timeline, place: int) -> Rows:
        """Return the rows of a frame, as wide as there are layers now."""
        rows: Rows = series.columns["rows"][place]
        return _widened(rows, len(self.names))

    def _add(self, series: Timeline, step: int, time_ms: int, revision: int, rows: Rows) -> None:
        series.limit = min(MAX_FRAMES, max(FEWEST_FRAMES, MAX_CELLS // max(1, len(self.names))))
        series.add(step, time_ms, revision, {"rows": rows})
        while len(series) > series.limit:  # there are more layers than there were
            series.thin(revision)
        if series.rewritten == revision:
            self.rewritten = revision

    def _ordered(self, names: Sequence[str], rows: Rows) -> Rows:
        if names == self.names:
            return rows
        for name in names:
            if name not in self._places and len(self.names) < MAX_LAYERS:
                self._places[name] = len(self.names)
                self.names.append(name)
        known = [place for place, name in enumerate(names) if name in self._places]
        ordered: Rows = np.full((rows.shape[0], len(self.names)), np.nan, dtype=np.float32)
        ordered[:, [self._places[names[place]] for place in known]] = rows[:, known]
        return ordered


def _carried(before: Rows, rows: Rows) -> Rows:
    """Return a frame with the newest measurements of what it lacks: some are taken now and then, the last has none."""
    carried: Rows = np.where(np.isnan(rows), before, rows)
    return carried


def _widened(rows: Rows, layers: int) -> Rows:
    if rows.shape[1] >= layers:
        return rows
    wider: Rows = np.full((rows.shape[0], layers), np.nan, dtype=np.float32)
    wider[:, : rows.shape[1]] = rows
    return wider
