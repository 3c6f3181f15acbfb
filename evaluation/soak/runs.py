"""A population of simulated training runs, as in life: they begin, are adapted, end, and others begin.

A run publishes its topology and then frames of all five kinds at its own pace. Its host carries out what is decided:
it waits for the kernel, answers with an outcome, and the frames after that show the seed in use and the lower loss.
One run in `ABANDONED` falls silent instead of ending, as a killed process does.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import PARAMETERS, Load, topology
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, OutcomeStatus
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import KernelPerformance, LayerHealth, ModelPerformance
from tamiyo.schemas.topics import OUTCOMES, TELEMETRY, TOPOLOGY, Topic

ABANDONED = 6
REFUSED = 0.05  # share of decisions that a host's own limits forbid
GAIN = 0.03  # nats that a kernel lowers a simulated loss by
KERNEL_PARAMETERS = 520  # of a kernel of rank 4 at a layer of 64
SEEDS = 2

TOPICS: dict[type[Record], Topic] = {topic.record: topic for topic in TELEMETRY}
Say = Callable[[Topic, Record, str], None]


class Journal(Protocol):
    """Who is told what was sent."""

    def began(self, run_id: str) -> None:
        """A run has published its topology."""

    def stepped(self, run_id: str, step: int, time_s: float, final: bool) -> None:
        """A run has published all frames of a sampled step."""

    def ended(self, run_id: str, time_s: float) -> None:
        """Nothing more will come of a run, whether it said so or not."""


@dataclass
class SimulatedRun:
    """One network in training, and the host beside it."""

    load: Load
    abandoned: bool
    pace_s: float
    due: float
    """When its next sampled step is."""
    say: Say
    steps: Iterator[list[Record]] = field(init=False)
    number: int = 0
    """Sampled steps published."""
    step: int = 0
    active: Counter[str] = field(default_factory=Counter)
    adapted_at: int | None = None
    answered: set[str] = field(default_factory=set)
    asked: dict[str, AdaptationDecision] = field(default_factory=dict)
    """By kernel id, decisions whose kernel has not come."""

    def __post_init__(self) -> None:
        self.steps = sampled_steps(self.load, 0)

    @property
    def run_id(self) -> str:
        """Return its name."""
        return self.load.run_ids[0]

    def begin(self, time_ms: int) -> None:
        """Publish the topology."""
        record = topology(self.run_id, self.load.layers).model_copy(update={"time_ms": time_ms})
        self.say(TOPOLOGY, record, self.run_id)

    def advance(self, time_ms: int, *, last: bool = False) -> bool:
        """Publish the next sampled step; `last` makes it final. Returns whether it was final."""
        final = last
        for record in next(self.steps):
            frame: Any = record
            self.step = frame.step
            final = final or frame.final
            self.say(TOPICS[type(record)], self._as_adapted(record, time_ms, final), self.run_id)
        self.number += 1
        return final

    def _as_adapted(self, record: Record, time_ms: int, final: bool) -> Record:
        """Return a frame as it is after what was loaded."""
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
        """Carry out a decision, once; one that loads a kernel waits for it."""
        if decision.decision_id in self.answered or decision.type == "no_op" or decision.dry_run:
            return
        self.answered.add(decision.decision_id)
        if random.random() < REFUSED:
            self._answer(decision, OutcomeStatus.REFUSED, time_ms)
        elif decision.kernel_id is not None:
            self.asked[decision.kernel_id] = decision
        else:
            self._execute(decision, time_ms)

    def compiled(self, kernel: CompiledKernel, time_ms: int) -> None:
        """Load a kernel that was asked for."""
        decision = self.asked.pop(kernel.kernel_id, None)
        if decision is None:
            return
        if kernel.status == "compiled":
            self._execute(decision, time_ms)
        else:
            self._answer(decision, OutcomeStatus.FAILED, time_ms)

    def _execute(self, decision: AdaptationDecision, time_ms: int) -> None:
        layer = decision.layer_id or ""
        before = self._parameters()
        if decision.type == "load_kernel":
            self.active[layer] = min(self.active[layer] + 1, SEEDS)
        elif decision.type in ("unload_kernel", "fossilize_kernel"):
            self.active[layer] = max(self.active[layer] - 1, 0)
        self.adapted_at = self.step
        self._answer(decision, OutcomeStatus.EXECUTED, time_ms, before)

    def _answer(
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
        self.say(OUTCOMES, outcome, self.run_id)


class Population:
    """`size` runs at a time; the same arguments give the same runs, decisions aside."""

    def __init__(
        self, size: int, *, layers: int, pace_s: float, frames: tuple[int, int], seed: int, say: Say, journal: Journal
    ) -> None:
        """`pace_s`: between two sampled steps of a run; `frames`: least and most sampled steps of a run."""
        self._size = size
        self._layers = layers
        self._pace_s = pace_s
        self._frames = frames
        self._random = Random(f"population-{seed}")
        self._say = say
        self._journal = journal
        self.abandoning = True
        """Whether runs may fall silent; near the end one would have to be waited for until it counts as idle."""
        self.numbers = 0
        """Runs begun so far."""
        self.runs: dict[str, SimulatedRun] = {}
        self.sent: Counter[str] = Counter()
        """Records by topic."""

    def advance(self, now: float) -> None:
        """Publish everything that is due at `now` (seconds since the epoch); replace runs that have ended."""
        while len(self.runs) < self._size:
            self._begin(now)
        for run in list(self.runs.values()):
            if run.due <= now:
                self._step(run, now)

    def finish(self, now: float) -> None:
        """End every run with its last frame."""
        for run in list(self.runs.values()):
            self._step(run, now, last=True)

    def heard(self, record: Record, now: float) -> None:
        """Hand a decision or kernel to the run it is for, if that still goes on."""
        run = self.runs.get(record.run_id)  # type: ignore[attr-defined]
        if run is None:
            return
        if isinstance(record, AdaptationDecision):
            run.decided(record, self._random, round(1000 * now))
        elif isinstance(record, CompiledKernel):
            run.compiled(record, round(1000 * now))

    def _begin(self, now: float) -> None:
        # The first ones are met in the middle of their lives, so that they do not all end together.
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
        self._say(topic, record, key)
