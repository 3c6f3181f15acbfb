"""Joins a window with its topology into the graph that the policy sees."""

from collections.abc import Sequence

from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.telemetry import ModelTopology

HISTORY_WINDOWS = 8


def build_graph(window: HealthWindow, topology: ModelTopology, history: Sequence[HealthWindow]) -> ModelGraph:
    """Return the graph of `window`: pure, the same inputs give the same bytes.

    `history` is the run's preceding windows, oldest first; only the last HISTORY_WINDOWS count.
    """
    raise NotImplementedError
