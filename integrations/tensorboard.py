"""Write an attached run to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable

from tamiyo.host import AdaptationEvent, FrameScalars, Handle
from tamiyo.integrations._follow import follow, scalars

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise ImportError("this needs TensorBoard: pip install 'esper-tamiyo[tensorboard]'") from error

__all__ = ["log_to_tensorboard"]


def log_to_tensorboard(handle: Handle, writer: SummaryWriter) -> Callable[[], None]:
    """Write the scalars of every frame as `tamiyo/*`, and every event as a text under `tamiyo/events`.

    Args:
        handle: The run.
        writer: Of torch; closing it stays with the caller. It writes in a thread of its own.

    Returns:
        A function that ends it.

    Example:
        ```python
        log_to_tensorboard(handle, SummaryWriter("runs/grown"))
        ```
    """

    def frame(values: FrameScalars) -> None:
        for name, value in scalars(values).items():
            writer.add_scalar(name, value, values.step, values.time_ms / 1e3)

    def event(happened: AdaptationEvent) -> None:
        writer.add_text("tamiyo/events", str(happened), happened.step, happened.time_ms / 1e3)
        if happened.kind == "closed":
            writer.flush()

    return follow(handle, frame, event)
