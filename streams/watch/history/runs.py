"""One run over time: its losses, layers, decisions and errors."""

import math
from bisect import bisect_right, insort
from collections import OrderedDict, deque
from typing import Any

from tamiyo.schemas.telemetry import ErrorRecoveryEvent, ModelPerformance, ModelTopology
from tamiyo.streams.admin.runs import QUIET_S
from tamiyo.streams.watch.history.decisions import DecisionHistory, Totals
from tamiyo.streams.watch.history.frames import GraphFrame, LayerFrame, WindowFrame
from tamiyo.streams.watch.history.layers import LayerHistory
from tamiyo.streams.watch.history.timeline import Timeline

MAX_POINTS = 2_000
MAX_WINDOWS = 1_000
SPARK_POINTS = 40
MAX_DECISIONS = 2_000
MAX_ERRORS = 200
MAX_ENDS = 100  # times at which a run ended, or attached, that are kept
QUIET_MS = round(1000 * QUIET_S)

# Losses as float32: a curve needs no more, and a server holds thousands of them.
POINTS = {
    "train_loss": "f",
    "train_accuracy": "f",
    "validation_loss": "f",
    "validation_accuracy": "f",
    "parameters": "d",
    "base_parameters": "d",
    "throughput": "f",
    "memory_bytes": "d",
    "step_time_ms": "f",
    "overhead_ratio": "f",
    "dropped_records": "d",
}
"""What a frame of ModelPerformance has, with the type of its numbers."""
SOMETIMES = ("validation_loss", "validation_accuracy", "train_accuracy")


class RunHistory:
    """Everything about one run."""

    def __init__(self, run_id: str, revision: int) -> None:
        """Know only its id, from a revision on."""
        self.run_id = run_id
        self.created = self.revision = revision
        self.first_ms: int | None = None
        self.newest_ms = 0
        """Kafka time of its newest record on any topic."""
        self.topology: dict[str, Any] | None = None
        self.topology_revision = 0
        self.attached_ms: int | None = None
        self.points = Timeline(POINTS, limit=MAX_POINTS, kept=SOMETIMES)
        self.windows = Timeline(
            {"middle": "d", "end": "d", "train_loss": "d", "validation_loss": "d"}, limit=MAX_WINDOWS
        )
        self.sparks = {name: Timeline({"loss": "f"}, limit=SPARK_POINTS) for name in ("validation_loss", "train_loss")}
        self.layers = LayerHistory()
        self.decisions: OrderedDict[str, DecisionHistory] = OrderedDict()
        self.adaptations: list[DecisionHistory] = []
        """The decisions other than no_op, by step."""
        self.decisions_revision = 0
        self.totals = Totals()
        self.errors: deque[tuple[int, int, ErrorRecoveryEvent]] = deque(maxlen=MAX_ERRORS)
        """(revision, Kafka time, event)."""
        self.removed_kernels: dict[str, tuple[int, int]] = {}
        """Kernels that the host unloaded after an error: Kafka time and step."""
        self.projections: dict[str, Any] = {}
        """Fitted projections by decision, which the views make and keep here."""
        self.silent = False
        """Whether it was reported as silent."""
        self._finals: list[int] = []
        """Kafka times of final frames, ascending."""
        self._attached: list[int] = []
        """Kafka times of its topologies, ascending."""

    @property
    def cells(self) -> int:
        """Numbers kept in series, for the bound over all runs."""
        return len(self.points) * (3 + len(POINTS)) + 7 * len(self.windows) + self.layers.cells // 2

    def thin(self, revision: int) -> None:
        """Keep half of the series."""
        for series in (self.points, self.windows):
            if len(series) > SPARK_POINTS:
                series.thin(revision)
        self.layers.thin(revision)

    def seen(self, time_ms: int) -> None:
        """Note that a record of the run came at a Kafka time."""
        self.first_ms = time_ms if self.first_ms is None else min(self.first_ms, time_ms)
        self.newest_ms = max(self.newest_ms, time_ms)
        self.silent = False

    def take_topology(self, record: ModelTopology, time_ms: int, revision: int) -> None:
        """Take the network; the newest one counts."""
        self._attached = _noted(self._attached, time_ms)
        if self.attached_ms is not None and time_ms < self.attached_ms:
            return
        self.attached_ms = time_ms
        self.topology = {
            "topology_id": record.topology_id,
            "task": record.task,
            "attached_ms": record.time_ms,
            "parameters": record.parameters,
            "parameter_budget": record.parameter_budget,
            "cooldown_steps": record.cooldown_steps,
            "planned_steps": record.planned_steps,
            "nodes": [
                {
                    "layer_id": each.layer_id,
                    "type": each.type,
                    "parameters": each.parameters,
                    "seeds": each.seeds,
                    "protected": each.protected,
                }
                for each in record.layers
            ],
            "offers": {each.layer_id: {one.name: one.parameters for one in each.blueprints} for each in record.layers},
            "edges": [{"source": each.source, "target": each.target, "kind": each.kind} for each in record.edges],
        }
        self.topology_revision = revision
        self.layers.begin([each.layer_id for each in record.layers], revision)

    def take_performance(self, record: ModelPerformance, time_ms: int, revision: int) -> None:
        """Take a frame of the whole model."""
        values = {name: _number(getattr(record, name)) for name in POINTS}
        self.points.add(record.step, time_ms, revision, values)
        for name, series in self.sparks.items():
            if values[name] == values[name]:
                series.add(record.step, time_ms, revision, {"loss": values[name]})
        if record.final:
            self._finals = _noted(self._finals, time_ms)

    def take_layers(self, frame: LayerFrame, time_ms: int, revision: int) -> None:
        """Take a frame of layer measurements."""
        self.layers.add_measured(frame.layer_id, frame.rows, frame.step, time_ms, revision)

    def take_graph(self, frame: GraphFrame, time_ms: int, revision: int) -> None:
        """Take the health of a graph."""
        self.layers.add_graph(frame.layer_id, frame.rows, frame.step, time_ms, revision)

    def take_window(self, frame: WindowFrame, time_ms: int, revision: int) -> None:
        """Take the losses of a window."""
        values = {
            "middle": frame.middle,
            "end": frame.end,
            "train_loss": frame.train_loss,
            "validation_loss": frame.validation_loss,
        }
        self.windows.add(frame.end, time_ms, revision, values)

    def add_adaptation(self, decision: DecisionHistory) -> None:
        """Take a decision other than no_op, now that it is known."""
        insort(self.adaptations, decision, key=_step)

    def drop_decision(self, decision: DecisionHistory) -> None:
        """Keep a decision in the totals only."""
        self.decisions.pop(decision.decision_id, None)
        self.projections.pop(decision.decision_id, None)
        if decision in self.adaptations:
            self.adaptations.remove(decision)

    def take_error(self, record: ErrorRecoveryEvent, time_ms: int, revision: int) -> None:
        """Take an error of a kernel."""
        self.errors.append((revision, time_ms, record))
        if record.strategy == "unload" and record.kernel_id is not None and len(self.removed_kernels) < MAX_DECISIONS:
            self.removed_kernels[record.kernel_id] = (time_ms, record.step)
            self.decisions_revision = revision  # the kernels are made of both

    def ended(self, at_ms: int | None = None) -> bool:
        """Return whether the last frame up to a time is a final one, and the run has not attached again since."""
        finals, attached = (_until(times, at_ms) for times in (self._finals, self._attached))
        if not finals:
            return False
        frames = self.points.until(at_ms)
        again = max(self.points.times[frames - 1] if frames else 0, attached[-1] if attached else 0)
        return again <= finals[-1]


def _until(times: list[int], at_ms: int | None) -> list[int]:
    return times if at_ms is None else times[: bisect_right(times, at_ms)]


def _noted(times: list[int], time_ms: int) -> list[int]:
    return sorted({*times, time_ms})[-MAX_ENDS:]


def _step(decision: DecisionHistory) -> int:
    return decision.decided.step if decision.decided is not None else -1


def _number(value: float | None) -> float:
    return math.nan if value is None else value
