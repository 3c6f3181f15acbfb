"""One training run in the laboratory: it stops wherever a decision is due, and goes on once it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch.nn import functional as F

from tamiyo.evaluation.lab.baselines import Baseline
from tamiyo.evaluation.lab.compute import ComputeClock
from tamiyo.evaluation.lab.hosts import lab_task
from tamiyo.evaluation.lab.hosts.wider import wider
from tamiyo.evaluation.lab.pipeline import Pipeline, default_settings
from tamiyo.host import Handle, HostSettings
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._reference.train import VALIDATE_INTERVAL, Workload, evaluate
from tamiyo.host.blueprints import blueprint, seed_of
from tamiyo.models.behaviour import Choice
from tamiyo.models.learning.learner import Learner
from tamiyo.schemas.adaptation import AdaptationOutcome
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.topics import OUTCOMES, Topic


@dataclass(frozen=True, slots=True)
class GrownKernel:
    """A kernel in its place."""

    layer_id: str
    seed_index: int
    blueprint: str
    kernel_id: str
    """Decides the kernel's initial parameters."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What a run is a function of, apart from its policy."""

    task: str
    seed: int
    """Decides the initial parameters, and the order of the data unless `data_seed` is given."""
    steps: int = 0
    """Optimiser steps; 0: as many as the task recommends."""
    data_seed: int | None = None
    """Decides the order of the data."""
    kernels: tuple[GrownKernel, ...] = ()
    """Grown before the first step, each fresh, as when it was loaded into the run that it comes from."""
    parameters: int = 0
    """Size of the network, by scaling the hidden widths of the task's own; 0: the task's own."""

    @property
    def run_id(self) -> str:
        """Name of the run on every topic: decisions are sampled by it."""
        return f"{self.task}-{self.seed}"

    @property
    def planned(self) -> int:
        """Optimiser steps of the run."""
        return self.steps or lab_task(self.task).steps


@dataclass(slots=True)
class Curve:
    """The run at its validations; lists of equal length."""

    step: list[int] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    """Computed time of the training steps so far, seconds."""
    validation: list[float] = field(default_factory=list)
    """Held-out loss, nats."""
    test: list[float] = field(default_factory=list)
    """Loss on the test split, nats: for reports, no stage sees it."""
    kernel_parameters: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """The outcome of a decision."""

    decision_id: str
    step: int
    type: str
    layer_id: str
    blueprint: str
    status: str


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of a run."""

    task: str
    seed: int
    data_seed: int
    steps: int
    budget: int
    """Parameters by which it might grow."""
    parameters: int
    """Its own parameters, without kernels."""
    compute: float
    """Computed training time of the whole run if it never adapts, seconds: the budget of an equal comparison."""
    curve: Curve
    adaptations: list[Adaptation]
    kernels: list[GrownKernel] = field(default_factory=list)
    """Those that the network carries."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the result that `to_dict` described."""
        fields = dict(values)
        fields["curve"] = Curve(**fields["curve"])
        fields["adaptations"] = [Adaptation(**each) for each in fields["adaptations"]]
        fields["kernels"] = [GrownKernel(**each) for each in fields.get("kernels", ())]
        return cls(**fields)


class Run:
    """A training run with all stages around it, in computed time: the same arguments give the same bits.

    Several runs of one process can take turns: each has the process's clock only while it trains or decides.

    Args:
        spec: Task, seed and length.
        policy: Decides unless `decide` is given another choice.
        settings: By stage, fields that differ from the defaults; under "host", those of `HostSettings`.
        learner: Learns from the run's experiences; each policy that it accepts decides from then on. Give it to one run
            after the other to train a policy.
        observer: Called with every record as it is published.

    Example:
        >>> from tamiyo.evaluation.lab.baselines import Heuristic, Never
        >>> with Run(RunSpec("digits", seed=0, steps=100), Never()) as run:
        ...     while (graph := run.advance()) is not None:
        ...         run.decide()
        ...     result = run.result()
        >>> len(result.curve.validation)
        2
    """

    def __init__(
        self,
        spec: RunSpec,
        policy: Baseline,
        *,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        learner: Learner | None = None,
        observer: Callable[[Topic, Any, bytes], None] | None = None,
    ) -> None:
        self.spec = spec
        self.clock = ComputeClock()
        self.curve = Curve()
        self.adaptations: list[Adaptation] = []
        self._observer = observer
        stages = dict(settings or {})
        # Probes run by step count, whatever they cost; thousands of runs announce nothing.
        host = {"overhead_budget": 0.9, "announce": False, **stages.pop("host", {})}
        with default_settings():
            self.pipeline = Pipeline(policy, settings=stages, learner=learner, observer=self._observe)
            self._settings = HostSettings(**host)
        self._step = 0
        self._compute = math.inf
        self._first_step = math.nan
        self._closed = False

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        spec = self.spec
        task = lab_task(spec.task)
        if spec.parameters:
            task = wider(task, spec.parameters)
        self.workload = Workload.of(task, seed=spec.seed, steps=spec.planned)
        with self.clock.running():
            self._handle: Handle = self.workload.attach(
                settings=self._settings, transport=self.pipeline, run_id=spec.run_id
            )
        self._grow(spec.kernels)
        self._batches = task.batches(spec.seed if spec.data_seed is None else spec.data_seed)
        self.workload.model.train()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.discard()

    workload: Workload
    """Network, optimiser and data; from `__enter__` on."""

    @property
    def graph(self) -> ModelGraph | None:
        """The graph that waits for its decision; None if none does."""
        graphs = self.pipeline.graphs
        return graphs[0].record if graphs else None

    @property
    def step(self) -> int:
        """Optimiser steps completed."""
        return self._step

    @property
    def ended(self) -> bool:
        """Whether training has ended: a decision on a graph that still waits has no effect."""
        return self._closed

    def advance(self, until: int | None = None) -> ModelGraph | None:
        """Train until a graph waits for its decision, and return it; None once the run has ended, or reached `until`.

        Args:
            until: Optimiser steps at which to pause the run; None: its end.
        """
        with self.clock.running():
            while self.graph is None:
                if self._closed or (until is not None and self._step >= until):
                    return None
                if self._step < self.spec.planned and self.clock.training_seconds < self._compute:
                    self._train()
                else:
                    self._closed = True
                    self._handle.close()
        return self.graph

    def decide(self, choice: Choice | None = None) -> None:
        """Decide on the waiting graph: as the policy chooses, unless `choice` is given.

        Time stands still: policy and compiler run in other processes than the training.
        """
        graph = self.graph
        assert graph is not None, "no graph waits for a decision"
        with self.clock.running(), self.clock.stopped():
            self.pipeline.decide(choice or self.pipeline.choose(graph))

    @property
    def plain_compute(self) -> float:
        """Computed training time of the whole run if it never adapts, seconds; known after the first step."""
        return self._first_step * self.spec.planned

    def reorder(self, data_seed: int) -> None:
        """Go on with the training data in another order."""
        self._batches = self.workload.task.batches(data_seed)

    def mute(self, compute: float = math.inf) -> None:
        """Publish nothing any more, and end once the training steps have cost `compute` seconds: nobody decides."""
        self.pipeline.muted = True
        self._compute = compute

    def finish(self, policy: Baseline | None = None) -> RunResult:
        """Go on to the end, under `policy` if one is given, and return the result."""
        if policy is not None:
            self.pipeline.policy = policy
        while self.advance() is not None:
            self.decide()
        return self.result()

    def result(self) -> RunResult:
        """Return the run as far as it has come."""
        spec, model = self.spec, self.workload.model
        stats = self._handle.stats
        return RunResult(
            task=spec.task,
            seed=spec.seed,
            data_seed=spec.seed if spec.data_seed is None else spec.data_seed,
            steps=self._step,
            budget=int(self._settings.parameter_budget_ratio * (stats.parameters - stats.kernel_parameters)),
            parameters=sum(p.numel() for p in model.parameters()) - stats.kernel_parameters,
            compute=self.plain_compute,
            curve=self.curve,
            adaptations=self.adaptations,
            kernels=[
                GrownKernel(layer_id, seed.index, seed.blueprint, seed.kernel_id)
                for layer_id, layer in self._model.layers.items()
                for seed in layer.seeds
                if seed.loaded
            ],
        )

    @property
    def _model(self) -> AttachedModel:
        return self._handle._model

    def _grow(self, kernels: tuple[GrownKernel, ...]) -> None:
        """Load kernels before the first step."""
        for each in kernels:
            layer = self._model.layers[each.layer_id]
            kernel = blueprint(each.blueprint).build(layer.spec, seed=seed_of(each.kernel_id))
            layer.load_kernel(
                kernel, kernel_id=each.kernel_id, blueprint=each.blueprint, step=0, seed_index=each.seed_index
            )
        if kernels:
            self._handle._adapter.advance(0)  # lets the optimiser train what the model carries now

    def _train(self) -> None:
        model, optimizer, handle = self.workload.model, self.workload.optimizer, self._handle
        epoch, inputs, labels = next(self._batches)
        with self.clock.training():
            logits = model(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        self.clock.complete_step(optimizer)
        self._step += 1
        if self._step == 1:
            self._first_step = self.clock.training_seconds
        handle.epoch = epoch
        correct = (logits.argmax(dim=1) == labels).float().mean() if handle.sampling else None
        handle.step(loss=loss, accuracy=correct)
        if self._step % VALIDATE_INTERVAL == 0:
            self._validate()

    def _validate(self) -> None:
        task, model = self.workload.task, self.workload.model
        validation, _ = self._handle.validate(lambda: evaluate(model, task.validation))
        with self.clock.stopped():
            test, _ = evaluate(model, task.test)
        curve = self.curve
        curve.step.append(self._step)
        curve.compute.append(self.clock.training_seconds)
        curve.validation.append(validation)
        curve.test.append(test)
        curve.kernel_parameters.append(self._handle.stats.kernel_parameters)

    def _observe(self, topic: Topic, record: Any, data: bytes) -> None:
        if topic is OUTCOMES:
            outcome: AdaptationOutcome = record
            self.adaptations.append(
                Adaptation(
                    outcome.decision_id,
                    outcome.step,
                    str(outcome.type),
                    outcome.layer_id or "",
                    outcome.blueprint or "",
                    str(outcome.status),
                )
            )
        if self._observer is not None:
            self._observer(topic, record, data)
