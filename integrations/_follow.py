"""What all loggers share: they follow a run's frames and events, and write its scalars under the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tamiyo.host import AdaptationEvent, FrameScalars, Handle


def follow(
    handle: Handle, frame: Callable[[FrameScalars], object], event: Callable[[AdaptationEvent], object]
) -> Callable[[], None]:
    """Call `frame` and `event` as they come; return a function that ends both."""
    ends = (handle.on_frame(frame), handle.on_event(event))

    def end() -> None:
        for each in ends:
            each()

    return end


def scalars(frame: FrameScalars) -> dict[str, float]:
    """Return the values of a frame that were measured, by their names in a logger."""
    values = dataclasses.asdict(frame)
    del values["step"], values["time_ms"]
    return {f"tamiyo/{name}": float(value) for name, value in values.items() if value is not None}
