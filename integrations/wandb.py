"""Write an attached run to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tamiyo.host import AdaptationEvent, FrameScalars, Handle
from tamiyo.integrations._follow import follow, scalars

if TYPE_CHECKING:
    from wandb import Run

__all__ = ["log_to_wandb"]

_STEP = "tamiyo/step"


def log_to_wandb(handle: Handle, run: Run) -> Callable[[], None]:
    """Log the scalars of every frame as `tamiyo/*`, and every event as `tamiyo/event`.

    They have an axis of their own, `tamiyo/step`, and advance W&B's step by one for each frame and each event. A
    program that passes `step=` to its own `run.log` must not pass a smaller one than that.

    Args:
        handle: The run of Tamiyo. Its id goes to the config of the other.
        run: Of W&B, online or offline; finishing it stays with the caller.

    Returns:
        A function that ends it.

    Example:
        ```python
        log_to_wandb(handle, wandb.init(project="grown", mode="offline"))
        ```
    """
    run.config.update({"tamiyo_run_id": handle.run_id}, allow_val_change=True)  # type: ignore[no-untyped-call]
    run.define_metric(_STEP, hidden=True)
    run.define_metric("tamiyo/*", step_metric=_STEP)

    def frame(values: FrameScalars) -> None:
        run.log({_STEP: values.step, **scalars(values)})

    def event(happened: AdaptationEvent) -> None:
        run.log(
            {
                _STEP: happened.step,
                "tamiyo/event": str(happened),
                "tamiyo/parameters": happened.parameters_after,
            }
        )

    return follow(handle, frame, event)
