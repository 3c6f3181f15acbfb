"""The decisions stage over a log, and graphs, commands and outcomes for it."""

from pathlib import Path
from typing import Any

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, ControlCommand, OutcomeStatus
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import graph_id, outcome_id
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, DECISIONS, GRAPHS
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.decisions.stage import DecisionsStage
from tests.support.factories import make_graph
from tests.support.released import release
from tests.support.stage_log import FixedView, Log, StageHarness

GRAPH = make_graph(6)


def graph(index: int = 0, *, run_id: str = "run-1", **fields: Any) -> ModelGraph:
    """Return the graph of window `index`."""
    values = {
        "run_id": run_id,
        "graph_id": graph_id(f"{run_id}-{index}", "topology"),
        "window_id": f"{run_id}-{index}",
        "step": 50 * index + 40,
        "time_ms": 1_700_000_000_000 + 1000 * index,
        "steps_since_adaptation": None,
    }
    return GRAPH.model_copy(update={**values, **fields})


def command(run_id: str = "run-1", **fields: Any) -> ControlCommand:
    return ControlCommand(run_id=run_id, time_ms=0, **fields)


class Bench:
    """A stage over a log, with the policies and orders in its views."""

    def __init__(self, url: Path, **fields: Any) -> None:
        self.url = url
        self.checkpoints = FixedView({"tamiyo": release(url, 0)})
        self.control = FixedView()
        self.settings = DecisionSettings(checkpoint_url=f"file://{url}", **fields)
        self.log = Log()
        self.harness = StageHarness(self.make, self.log.messages)

    def make(self) -> DecisionsStage:
        return DecisionsStage(0, self.settings, {CHECKPOINTS.name: self.checkpoints, CONTROL.name: self.control})

    def decide(self, *graphs: ModelGraph) -> list[AdaptationDecision]:
        for each in graphs:
            self.log.add(GRAPHS, each)
        return self.harness.run().records(DECISIONS)

    def adapted(self, count: int = 8, **fields: Any) -> list[AdaptationDecision]:
        """Decide the first graph of `count` runs; return the decisions that are adaptations."""
        return [each for each in self.decide(*(graph(5, run_id=f"run-{n}", **fields) for n in range(count)))
                if each.type != "no_op"]  # fmt: skip


def outcome(name: str, run_id: str, status: OutcomeStatus) -> AdaptationOutcome:
    """Return a host's outcome for the decision `name`."""
    return AdaptationOutcome(
        run_id=run_id, outcome_id=outcome_id(name), decision_id=name, step=300, time_ms=0, type="load_kernel",
        status=status,
    )  # fmt: skip


def first_adaptation(bench: Bench, **fields: Any) -> tuple[str, int]:
    """Return a run and the window at which it was adapted first."""
    for number in range(50):
        run_id = f"try-{number}"
        decisions = [each for each in bench.decide(graph(5, run_id=run_id, **fields)) if each.run_id == run_id]
        if decisions[-1].type != "no_op":
            return run_id, 5
    raise AssertionError("no run was adapted")
