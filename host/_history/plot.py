"""A picture of a run: its loss, and where the network was adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tamiyo.host._history.events import EventKind
from tamiyo.host._history.history import History
from tamiyo.schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {EventKind.EXECUTED: "tab:green", EventKind.REFUSED: "tab:gray", EventKind.FAILED: "tab:red"}


def plot(history: History, run_id: str, ax: Axes | None = None) -> Axes:
    """Draw the losses over the steps, and a vertical line at the outcome of each decision.

    Args:
        history: The run's history.
        run_id: Title.
        ax: Axes to draw into; None: those of a new figure.

    Returns:
        The axes.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ConfigurationError("plots need matplotlib: pip install 'esper-tamiyo[plot]'") from error
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 4))
    for name, label in (("train_loss", "training"), ("validation_loss", "validation")):
        points = [(frame.step, getattr(frame, name)) for frame in history.frames]
        points = [(step, loss) for step, loss in points if loss is not None]
        if points:
            ax.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
    outcomes = [event for event in history.events if event.kind in _COLORS]
    for event in outcomes:
        ax.axvline(event.step, color=_COLORS[event.kind], linewidth=1, linestyle="--")
        text = f" {event.decision} {event.blueprint or ''} at {event.layer_id}" + (
            "" if event.kind is EventKind.EXECUTED else f": {event.kind}"
        )
        # x in steps, y as a share of the axes' height: the text stays at the top whatever the loss is.
        ax.text(
            event.step, 1.0, text, transform=ax.get_xaxis_transform(), color=_COLORS[event.kind],
            rotation=90, fontsize="x-small", ha="right", va="top",
        )  # fmt: skip
    ax.set(title=run_id, xlabel="step", ylabel="loss, nats")
    if ax.get_legend_handles_labels()[1]:
        ax.legend()
    return ax
