"""A population of simulated training runs: they begin, are adapted, end, and others begin.

A run publishes its topology and then frames of all five kinds at its own pace. Its host executes the decisions: it
waits for the kernel and publishes an outcome, and later frames show the active seed and the lower loss. One run in
`ABANDONED` stops without a final frame, like a killed process.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import PARAMETERS, TOPICS, Load, topology
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, OutcomeStatus
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import OUTCOMES, TOPOLOGY, Topic

ABANDONED = 6
REFUSED = 0.05  # share of decisions that the host's limits forbid
GAIN = 0.03  # nats by which a kernel lowers a simulated loss
KERNEL_PARAMETERS = 520  # of a kernel of rank 4 at a layer of 64
SEEDS = 2

Publish = Callable[[Topic, Record, str], None]


class Journal(Protocol):
    """Records what the population has published."""

    def began(self, run_id: str) -> None:
        """A run has published its topology."""

    def stepped(self, run_id: str, step: int, time_s: float, final: bool) -> None:
        """A run has published all frames of a sampled step."""

    def ended(self, run_id: str, time_s: float) -> None:
        """A run has ended, with or without a final frame."""


@dataclass
class SimulatedRun:
    """One network in training, and the host beside it."""

    load: Load
    abandoned: bool
    pace_s: float
    due: float
    """Time of its next sampled step, seconds since the epoch."""
    publish: Publish
    steps: Iterator[list[Record]] = field(init=False)
    number: int = 0
    """Sampled steps published."""
    step: int = 0
    active: Counter[str] = field(default_factory=Counter)
    adapted_at: int | None = None
    decided_ids: set[str] = field(default_factory=set)
    waiting: dict[str, AdaptationDecision] = field(default_factory=dict)
    """By kernel id, decisions whose kernel has not arrived."""

    def __post_init__(self) -> None:
        self.steps = sampled_steps(self.load, 0)

    @property
    def run_id(self) -> str:
        """Return its id."""
        return self.load.run_ids[0]

    def begin(self, time_ms: int) -> None:
        """Publish the topology."""
        record = topology(self.run_id, self.load.layers).model_copy(update={"time_ms": time_ms})
        self.publish(TOPOLOGY, record, self.run_id)

    def advance(self, time_ms: int, *, last: bool = False) -> bool:
        """Publish the next sampled step; `last` makes it final. Return whether it was final."""
        final = last
        for record in next(self.steps):
            frame: Any = record
            self.step = frame.step
            final = final or frame.final
            self.publish(TOPICS[type(record)], self._as_adapted(record, time_ms, final), self.run_id)
        self.number += 1
        return final

    def _as_adapted(self, record: Record, time_ms: int, final: bool) -> Record:
        """Return a frame with the effects of the loaded kernels."""
        loaded = sum(self.active.values())
        changed: dict[str, Any] = {"time_ms": time_ms}
        if isinstance(record, KernelPerformance | LayerHealth | ModelPerformance):
            changed["final"] = final
        if isinstance(record, LayerHealth):
            active = [self.active[layer] for layer in record.layer_id]
            changed |= {
                "active_seeds": active,
                "dormant_seeds": [SEEDS - each for each in active],
                "kernel_load": [each / SEEDS for each in active],
                "alpha": [1.0 if each else 0.0 for each in active],
                "contribution": [GAIN * each if each else None for each in active],
                "kernel_parameters": [KERNEL_PARAMETERS * each for each in active],
            }
        elif isinstance(record, ModelPerformance):
            changed |= {
                "train_loss": record.train_loss - GAIN * loaded,
                "validation_loss": None if record.validation_loss is None else record.validation_loss - GAIN * loaded,
                "parameters": self._parameters(),
                "steps_since_adaptation": None if self.adapted_at is None else record.step - self.adapted_at,
            }
        return record.model_copy(update=changed)

    def _parameters(self) -> int:
        return self.load.layers * PARAMETERS + KERNEL_PARAMETERS * sum(self.active.values())

    # The host

    def decided(self, decision: AdaptationDecision, random: Random, time_ms: int) -> None:
        """Execute a decision once; a decision to load a kernel waits for it."""
        if decision.decision_id in self.decided_ids or decision.type == "no_op" or decision.dry_run:
            return
        self.decided_ids.add(decision.decision_id)
        if random.random() < REFUSED:
            self._publish_outcome(decision, OutcomeStatus.REFUSED, time_ms)
        elif decision.kernel_id is not None:
            self.waiting[decision.kernel_id] = decision
        else:
            self._execute(decision, time_ms)

    def compiled(self, kernel: CompiledKernel, time_ms: int) -> None:
        """Load a kernel that a decision requested."""
        decision = self.waiting.pop(kernel.kernel_id, None)
        if decision is None:
            return
        if kernel.status == "compiled":
            self._execute(decision, time_ms)
        else:
            self._publish_outcome(decision, OutcomeStatus.FAILED, time_ms)

    def _execute(self, decision: AdaptationDecision, time_ms: int) -> None:
        layer = decision.layer_id or ""
        before = self._parameters()
        if decision.type == "load_kernel":
            self.active[layer] = min(self.active[layer] + 1, SEEDS)
        elif decision.type in ("unload_kernel", "fossilize_kernel"):
            self.active[layer] = max(self.active[layer] - 1, 0)
        self.adapted_at = self.step
        self._publish_outcome(decision, OutcomeStatus.EXECUTED, time_ms, before)

    def _publish_outcome(
        self, decision: AdaptationDecision, status: OutcomeStatus, time_ms: int, before: int | None = None
    ) -> None:
        measured = status == OutcomeStatus.EXECUTED and before is not None
        outcome = AdaptationOutcome(
            run_id=self.run_id,
            outcome_id=outcome_id(decision.decision_id),
            decision_id=decision.decision_id,
            step=self.step,
            time_ms=time_ms,
            type=decision.type,
            layer_id=decision.layer_id,
            blueprint=decision.blueprint,
            kernel_id=decision.kernel_id,
            status=status,
            before={"parameters": float(before or 0), "latency_ms": 0.4} if measured else {},
            after={"parameters": float(self._parameters()), "latency_ms": 0.41} if measured else {},
        )
        self.publish(OUTCOMES, outcome, self.run_id)


class Population:
    """`size` runs at a time; equal arguments give equal runs, apart from the decisions."""

    def __init__(
        self,
        size: int,
        *,
        layers: int,
        pace_s: float,
        frames: tuple[int, int],
        seed: int,
        publish: Publish,
        journal: Journal,
    ) -> None:
        """Create a population; `advance` begins its runs.

        Args:
            size: Runs at a time.
            layers: Layers of each run's network.
            pace_s: Seconds between two sampled steps of a run.
            frames: Least and most sampled steps of a run.
            seed: Of the runs.
            publish: Receives topic, record and key.
            journal: Records the runs' begin, steps and end.
        """
        self._size = size
        self._layers = layers
        self._pace_s = pace_s
        self._frames = frames
        self._random = Random(f"population-{seed}")
        self._send = publish
        self._journal = journal
        self.abandoning = True
        """Whether runs may be abandoned; near the end of a soak draining would wait until they count as idle."""
        self.numbers = 0
        """Runs begun so far."""
        self.runs: dict[str, SimulatedRun] = {}
        self.sent: Counter[str] = Counter()
        """Records published, by topic."""

    def advance(self, now: float) -> None:
        """Publish what is due at `now` (seconds since the epoch); replace runs that have ended."""
        while len(self.runs) < self._size:
            self._begin(now)
        for run in list(self.runs.values()):
            if run.due <= now:
                self._step(run, now)

    def finish(self, now: float) -> None:
        """End every run with its last frame."""
        for run in list(self.runs.values()):
            self._step(run, now, last=True)

    def receive(self, record: Record, now: float) -> None:
        """Pass a decision or kernel to its run, if that has not ended."""
        run = self.runs.get(record.run_id)  # type: ignore[attr-defined]
        if run is None:
            return
        if isinstance(record, AdaptationDecision):
            run.decided(record, self._random, round(1000 * now))
        elif isinstance(record, CompiledKernel):
            run.compiled(record, round(1000 * now))

    def _begin(self, now: float) -> None:
        # The first runs are shorter and differ in length, so that they do not all end together.
        frames = self._random.randint(*self._frames)
        if self.numbers < self._size:
            frames = max(10, round(frames * (self.numbers + 1) / self._size))
        abandoned = self._random.randrange(ABANDONED) == 0
        load = Load(runs=1, layers=self._layers, frames=frames, seed=self.numbers, name="soak")
        due = now + self._pace_s * self._random.random()
        run = SimulatedRun(load, abandoned, self._pace_s, due, self._publish)
        self.numbers += 1
        self.runs[run.run_id] = run
        run.begin(round(1000 * now))
        self._journal.began(run.run_id)

    def _step(self, run: SimulatedRun, now: float, *, last: bool = False) -> None:
        final = run.advance(round(1000 * now), last=last)
        run.due = max(run.due + run.pace_s, now)
        self._journal.stepped(run.run_id, run.step, now, final)
        silent = self.abandoning and run.abandoned and run.number >= run.load.frames - 1
        if final or silent:
            del self.runs[run.run_id]
            self._journal.ended(run.run_id, now)

    def _publish(self, topic: Topic, record: Record, key: str) -> None:
        self.sent[topic.name] += 1
        self._send(topic, record, key)
