"""Write an attached run to MLflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tamiyo.host import AdaptationEvent, FrameScalars, Handle
from tamiyo.integrations._follow import follow, scalars

try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
except ImportError as error:
    raise ImportError("this needs MLflow: pip install 'esper-tamiyo[mlflow]'") from error

__all__ = ["log_to_mlflow"]

_EVENTS_FILE = "tamiyo/events.json"
"""The artifact with the events."""


def log_to_mlflow(handle: Handle, run_id: str, *, client: MlflowClient | None = None) -> Callable[[], None]:
    """Log the scalars of every frame as metrics `tamiyo/*`, and the events as the artifact `tamiyo/events.json`.

    Metrics are logged by a thread of MLflow. The artifact is written again after every event, in the training thread:
    events are rare.

    Args:
        handle: The run of Tamiyo. Its id becomes the tag `tamiyo.run_id`.
        run_id: The run of MLflow, such as `mlflow.active_run().info.run_id`; ending it stays with the caller.
        client: Default: one for the tracking URI in force.

    Returns:
        A function that ends it.

    Example:
        ```python
        with mlflow.start_run() as run:
            log_to_mlflow(handle, run.info.run_id)
        ```
    """
    client = client or MlflowClient()
    client.set_tag(run_id, "tamiyo.run_id", handle.run_id)
    logged: list[Any] = []

    def frame(values: FrameScalars) -> None:
        metrics = [Metric(name, value, values.time_ms, values.step) for name, value in scalars(values).items()]
        logged[:] = [client.log_batch(run_id, metrics=metrics, synchronous=False)]

    def event(happened: AdaptationEvent) -> None:
        client.log_dict(run_id, {"events": handle.history.to_records("events")}, _EVENTS_FILE)
        if happened.kind == "closed":
            for operation in logged:
                operation.wait()

    return follow(handle, frame, event)
