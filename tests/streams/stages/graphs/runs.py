"""Runs of windows for the tests of graphs, and the stage under test."""

import random
from collections.abc import Sequence
from typing import Any

from tamiyo.models.graph import build_graph
from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.topics import TOPOLOGY, WINDOWS
from tamiyo.streams.settings import GraphSettings, WindowSettings
from tamiyo.streams.stages.base import Incoming
from tamiyo.streams.stages.graphs.stage import GraphsStage
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.telemetry import COMPANIONS, DictView, outputs, partition, signal

KERNEL, LAYER, MODEL = COMPANIONS
LAYERS = ["a", "b"]


def windows(count: int, run_id: str = "run", layers: Sequence[str] = LAYERS, final: bool = False) -> list[HealthWindow]:
    """Return the windows of a run of `count` x 50 steps, made by the windows stage."""
    rng = random.Random(run_id)
    signals = []
    for step in range(0, 50 * count, 25):
        last: dict[str, Any] = {"run_id": run_id, "final": final and step == 50 * count - 25}
        latency: list[float | None] = [rng.random() for _ in layers]
        signals += [
            signal(KERNEL, step, {"execution_latency_ms": latency, "health": latency}, layers=layers, **last),
            signal(LAYER, step, {"gradient_norm": [rng.random() for _ in layers]}, layers=layers, **last),
            signal(MODEL, step, model_metrics={"train_loss": rng.random()}, **last),
        ]
    stage = WindowsStage(0, WindowSettings(idle_timeout_s=0), {})
    produced = [*outputs(stage.feed(partition(signals))), *stage.flush()]
    return [output.record for output in produced]


def stage(topologies: dict[str, Any], build: Any = build_graph, **fields: Any) -> GraphsStage:
    return GraphsStage(0, GraphSettings(**fields), {TOPOLOGY.name: DictView(topologies)}, build)


def fed(records: Sequence[HealthWindow]) -> list[Incoming]:
    return partition(records, WINDOWS.name)
