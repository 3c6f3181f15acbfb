"""Shows a running demo: a progress bar for each run, and a line for each adaptation and its reward."""

import threading

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from tamiyo.schemas import topics
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome
from tamiyo.schemas.display import printable
from tamiyo.schemas.learning import PolicyCheckpoint, RewardAnalysis
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import ModelPerformance

_ORIGINS = {"builtin": "the laboratory, as it comes with the package", "heuristic": "the heuristic"}
"""Where a policy without experiences comes from, by the learner's setting `initial_policy`."""
PLAIN_LINES = 10  # lines of progress for each run, where there is no terminal for a bar


class Display:
    """Turns records into lines and bars; called from the observer's thread."""

    def __init__(self, console: Console, steps: int, initial_policy: str = "builtin") -> None:
        self.console = console
        self._initial_policy = initial_policy
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(min_width=9)),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._steps = steps
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, int] = {}
        self._losses: dict[str, float] = {}
        self._decisions: dict[str, AdaptationDecision] = {}
        self._versions: set[int] = set()
        self._rewarded: set[str] = set()
        self._lock = threading.Lock()

    def take(self, topic: topics.Topic, record: Record) -> None:
        """Show a record, if it is of a kind that is shown."""
        with self._lock:
            if isinstance(record, ModelPerformance):
                self._performance(record)
            elif isinstance(record, AdaptationDecision):
                self._decision(record)
            elif isinstance(record, AdaptationOutcome):
                status = record.status.value if not record.reason else f"{record.status.value}: {record.reason}"
                self._print(record.run_id, record.step, f"{record.type} at {record.layer_id} {_plain(status)}")
            elif isinstance(record, RewardAnalysis):
                self._reward(record)
            elif isinstance(record, PolicyCheckpoint) and record.version not in self._versions:
                self._versions.add(record.version)
                origin = (
                    f"{record.experiences} experiences"
                    if record.version
                    else _ORIGINS.get(self._initial_policy, escape(printable(self._initial_policy)))
                )
                self.console.print(f"[magenta]policy version {record.version}[/] from {origin}")

    def _performance(self, record: ModelPerformance) -> None:
        if record.validation_loss is not None:
            self._losses[record.run_id] = record.validation_loss
        loss = self._losses.get(record.run_id)
        state = f"train {record.train_loss:.3f}" + (f", validation {loss:.3f}" if loss is not None else "")
        state += f", {record.parameters:,} parameters"
        if record.run_id not in self._tasks:
            self._tasks[record.run_id] = self.progress.add_task(record.run_id, total=self._steps, state=state)
        self.progress.update(self._tasks[record.run_id], completed=record.step, state=state)
        part = record.step * PLAIN_LINES // max(self._steps, 1)
        if not self.console.is_terminal and part > self._printed.get(record.run_id, 0):
            self._printed[record.run_id] = part
            self._print(record.run_id, record.step, state)

    def _decision(self, record: AdaptationDecision) -> None:
        if record.decision_id in self._decisions:
            return
        self._decisions[record.decision_id] = record
        if record.type != "no_op":
            what = record.type if record.blueprint is None else f"{record.type} {record.blueprint}"
            details = f"confidence {record.confidence:.2f}, policy {record.policy_version}"
            self._print(record.run_id, record.step, f"[bold cyan]decision: {what} at {record.layer_id}[/] ({details})")

    def _reward(self, record: RewardAnalysis) -> None:
        if record.action.type == "no_op" or not record.complete or record.decision_id in self._rewarded:
            return
        self._rewarded.add(record.decision_id)
        colour = "green" if record.total > 0 else "red"
        self._print(
            record.run_id,
            record.step,
            f"[{colour}]reward {record.total:+.2f} for {record.action.type} at {record.action.layer_id}[/]: "
            f"{_plain(record.explanation)}",
        )

    def _print(self, run_id: str, step: int, text: str) -> None:
        self.console.print(f"{run_id} [dim]step {step:>5}[/] {text}", highlight=False)


def _plain(text: str) -> str:
    """Return a record's text without rich's markup and a terminal's escape sequences."""
    return escape(printable(text))
