"""All stages of one partition in this process, with one attached run at both ends; the learner too, if wanted.

The stages are those of production. Records pass through the codec, so that a stage reads what it would read from
Kafka. A graph waits in `graphs` until `decide` is called: the laboratory chooses the action.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from tamiyo.evaluation.lab.baselines import Baseline, Learned
from tamiyo.host import HostSettings
from tamiyo.host._client.transport import InboundRecord, Make
from tamiyo.host._common import clock
from tamiyo.models.behaviour import Choice
from tamiyo.models.learning.learner import Learner
from tamiyo.schemas.adaptation import CompiledKernel
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import decision_id, identity, sampling_seed
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CATALOGUE, CONTROL, DECISIONS, EXPERIENCE, GRAPHS, KERNELS, OUTCOMES, Topic
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tamiyo.streams.stages.decisions.stage import DecisionsStage
from tamiyo.streams.stages.registry import STAGES

_TO_HOST = (DECISIONS, KERNELS, CONTROL)
_stores = itertools.count()


@contextmanager
def default_settings() -> Iterator[None]:
    """Return a context in which settings have their defaults, whatever `TAMIYO_*` variables are set."""
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.upper().startswith("TAMIYO_")}
    try:
        yield
    finally:
        os.environ.update(own)


class _Chosen:
    """Decides as the laboratory requests: the policies of the decisions stage, and what they serve."""

    def __init__(self, policy: Baseline) -> None:
        self.policy = policy
        self.choice: Choice | None = None

    @property
    def version(self) -> int:
        return self.policy.version

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.policy.kinds

    def choose(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], *, seed: int) -> Choice:
        return self.choice or self.policy.choose(graph, mask, seed=seed)

    def current(self, graph: ModelGraph | None = None) -> _Chosen:
        return self

    def reject(self, served: Any, reason: Exception) -> bool:
        raise reason


class View:
    """The newest record under each key of a compacted topic."""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """Return the newest record under `key`, or None."""
        return self.records.get(key)

    def items(self) -> list[tuple[str, Any]]:
        """Return all keys with their newest record."""
        return list(self.records.items())


class Pipeline:
    """The topics of one partition, the stages between them, and the transport of one run.

    Args:
        policy: Decides on the graphs.
        settings: By stage, fields that differ from the defaults, such as `{"windows": {"width": 100}}`.
        learner: Learns from the experiences; each policy that it accepts decides from then on.
        observer: Called with every record as it is published.
    """

    destination = "the laboratory"
    awaits_decisions = False
    connected = True
    busy_seconds = 0.0
    dropped = 0

    def __init__(
        self,
        policy: Baseline,
        *,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        learner: Learner | None = None,
        observer: Callable[[Topic, Any, bytes], None] | None = None,
    ) -> None:
        self._learner = learner
        self._store = f"/laboratory-{next(_stores)}"
        self.store_url: str | None = f"memory:/{self._store}"
        self.published = 0
        self.rejected: list[Reject] = []
        self.graphs: deque[Incoming] = deque()
        """Waiting for their decision."""
        self.observer = observer
        self.stream = 0
        """Number of the random stream that the policy draws from; 0: that of production, other ones for repetitions."""
        self.muted = False
        """Whether the run's records are dropped, outcomes excepted: nobody decides any more."""
        views: dict[str, View] = {topic.name: View() for topic in CATALOGUE if topic.cleanup == "compact"}
        own = {"kernels": {"store_url": self.store_url}, "decisions": {"checkpoint_url": f"{self.store_url}/policies"}}
        self.stages: dict[str, Stage] = {}
        for name, entry in STAGES.items():
            fields = {**own.get(name, {}), **(settings or {}).get(name, {})}
            self.stages[name] = entry.load()(0, entry.settings(**fields), views)
        decisions = self.stages["decisions"]
        assert isinstance(decisions, DecisionsStage)
        self._decisions = decisions
        self._chosen = _Chosen(policy)
        decisions.serve(self._chosen)
        self._views = views
        self._readers: dict[str, list[Stage]] = defaultdict(list)
        for stage in self.stages.values():
            for topic in stage.inputs:
                self._readers[topic.name].append(stage)
        self._offsets: dict[str, int] = defaultdict(int)
        self._to_host: deque[InboundRecord] = deque()
        self._on_kernel: Callable[[CompiledKernel], None] | None = None

    @property
    def policy(self) -> Baseline:
        """What decides; set it to go on under another policy."""
        return self._chosen.policy

    @policy.setter
    def policy(self, policy: Baseline) -> None:
        self._chosen.policy = policy

    def mask(self, graph: ModelGraph) -> npt.NDArray[np.bool_]:
        """Return the legal actions at the waiting `graph`, bool [actions]."""
        return self._decisions.mask(graph, self.policy.kinds)

    def choose(self, graph: ModelGraph) -> Choice:
        """Return what the policy chooses at the waiting `graph`."""
        name = decision_id(graph.graph_id)
        seed = sampling_seed(identity("stream", name, self.stream) if self.stream else name)
        return self.policy.choose(graph, self.mask(graph), seed=seed)

    def decide(self, choice: Choice) -> None:
        """Decide on the oldest waiting graph; the run receives the decision at its next step."""
        incoming = self.graphs.popleft()
        self._chosen.choice = choice
        try:
            self._take(self._decisions.feed([incoming]))
        finally:
            self._chosen.choice = None

    def send(self, topic: Topic, record: Record) -> None:
        """Publish a record to the stages that read it."""
        data = encode(record)
        arrived: Any = decode(data, topic.record)
        offset = self._offsets[topic.name]
        self._offsets[topic.name] += 1
        if self.observer is not None:
            self.observer(topic, arrived, data)
        key = getattr(arrived, "run_id", None) or arrived.name
        if topic.name in self._views:
            self._views[topic.name].records[key] = arrived
        if topic in _TO_HOST:
            if isinstance(arrived, CompiledKernel) and self._on_kernel is not None:
                self._on_kernel(arrived)
            self._to_host.append(arrived)
        if topic is EXPERIENCE and self._learner is not None:
            self._learn(self._learner, arrived)
        incoming = Incoming(topic.name, 0, offset, clock.time_ms(), arrived, data, key.encode())
        for stage in self._readers[topic.name]:
            if topic is GRAPHS and stage is self._decisions:
                self.graphs.append(incoming)
            else:
                self._take(stage.feed([incoming]))

    def _learn(self, learner: Learner, experience: Experience) -> None:
        learner.take(experience)
        if not learner.ready():
            return
        report = learner.learn()
        if report is not None and report.accepted:
            self.policy = Learned(copy.deepcopy(learner.policy).eval(), learner.version)

    def _take(self, results: Sequence[Output | Reject]) -> None:
        for each in results:
            if isinstance(each, Reject):
                self.rejected.append(each)
            else:
                self.send(each.topic, each.record)

    def discard(self) -> None:
        """Delete the kernels kept in memory."""
        files = fsspec.filesystem("memory")
        if files.exists(self._store):
            files.rm(self._store, recursive=True)

    # The run's Transport:

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[CompiledKernel], None]) -> None:
        """Begin to carry a run."""
        self._on_kernel = on_kernel

    def publish(self, topic: Topic, make: Make) -> None:
        """Publish a record of the run."""
        self.published += 1
        if topic is OUTCOMES or not self.muted:
            self.send(topic, make())

    def receive(self) -> Sequence[InboundRecord]:
        """Return what arrived for the run since the last call."""
        arrived = list(self._to_host)
        self._to_host.clear()
        return arrived

    def close(self, timeout_s: float) -> None:
        """Do nothing: there is no connection."""
