"""Test a training loop with Tamiyo attached, without a broker and without the pipeline."""

from __future__ import annotations

import logging
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from tamiyo.host._client.transport import InboundRecord, Make
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._kernels.compiler import compile_decision, refused_kernel
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host.blueprints import blueprint as find_blueprint
from tamiyo.host.blueprints import names
from tamiyo.schemas.adaptation import (
    ALL_RUNS,
    Action,
    AdaptationDecision,
    CompiledKernel,
    ControlCommand,
    DecisionType,
)
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import ConfigurationError, KernelError, TamiyoError
from tamiyo.schemas.identity import decision_id, graph_id, kernel_id, sampling_seed
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import BY_NAME, CONTROL, DECISIONS, KERNELS, MODEL_PERFORMANCE, TOPOLOGY, Topic

__all__ = ["MemoryTransport"]

log = logging.getLogger(__name__)

_TOPIC_OF: dict[type[Record], Topic] = {
    AdaptationDecision: DECISIONS,
    CompiledKernel: KERNELS,
    ControlCommand: CONTROL,
}


class MemoryTransport:
    """A transport for tests: it keeps what a run publishes in memory, and makes decisions on request.

    Only Kafka and the policy are replaced. Records pass through the real codec; kernels are compiled, checked and
    stored as in the kernels stage; the host applies its limits, executes decisions and publishes outcomes as in
    production. One transport carries one run. Kernels stay in memory, whatever `HostSettings.store_url` is.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tamiyo.host import attach
        >>> from tamiyo.host.testing import MemoryTransport
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> transport = MemoryTransport()
        >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=transport)
        >>> decision = transport.decide("load_kernel", layer="0", blueprint="bottleneck")
        >>> handle.step(loss=0.7)
        >>> [outcome.status.value for outcome in transport.records("tamiyo.adaptation.outcomes")]
        ['executed']
        >>> handle.stats.kernel_parameters
        280
        >>> handle.close()
    """

    destination = "memory"
    """Nothing leaves the process."""
    awaits_decisions = False
    """Nothing decides by itself, so closing does not wait."""
    busy_seconds = 0.0
    """There is no thread: what publishing costs, the training loop pays."""

    def __init__(self) -> None:
        self.store_url: str | None = f"memory://tamiyo-{uuid.uuid4().hex}"
        """fsspec URL of the transport's own kernel store."""
        self.connected = False
        """Whether a run is attached."""
        self.closed = False
        """Whether the run has ended."""
        self.published = 0
        """Number of records that the run has published."""
        self.dropped = 0
        """Number of records that were invalid, or published after the end."""
        self._run_id = ""
        self._topics: defaultdict[str, list[bytes]] = defaultdict(list)
        self._inbox: deque[InboundRecord] = deque()
        self._on_kernel: Callable[[CompiledKernel], None] | None = None

    def decide(
        self, kind: DecisionType | str, *, layer: str | None = None, blueprint: str | None = None
    ) -> AdaptationDecision:
        """Make a decision about the attached run; it is executed, or refused, at the next `handle.step`.

        For `load_kernel` the kernel is compiled too. If that fails, for example because it exceeds the parameter
        budget, the host refuses the decision with the reason, as in production.

        Args:
            kind: A DecisionType or its value: "load_kernel", "unload_kernel", "fossilize_kernel",
                "optimize_parameters" or "no_op".
            layer: Name of the layer to adapt; required except for "no_op".
            blueprint: Name of the blueprint to load; for "load_kernel" only.

        Returns:
            The decision, as on the topic.

        Raises:
            ConfigurationError: No run is attached, or kind, layer or blueprint is unknown, missing or superfluous.
        """
        topology = self._topology()
        action = _action(kind, layer, blueprint, topology)
        decision = self._decision(action, topology)
        self.send(decision)
        if action.type == DecisionType.LOAD_KERNEL:
            self.send(self._compile(decision, topology))
        return decision

    def send(self, *records: InboundRecord) -> None:
        """Put records of your own on their topics: decisions, compiled kernels, or an operator's control commands.

        Like a host on Kafka, the run receives those that carry its run_id, or `*`.

        Args:
            records: In the order in which they are to arrive.
        """
        for record in records:
            topic = _TOPIC_OF[type(record)]
            data = encode(record)
            self._topics[topic.name].append(data)
            if record.run_id not in (self._run_id, ALL_RUNS):
                continue
            arrived: Any = decode(data, topic.record)
            if isinstance(arrived, CompiledKernel) and self._on_kernel is not None:
                self._on_kernel(arrived)
            self._inbox.append(arrived)

    def records(self, topic: str) -> list[Any]:
        """Return the records on a topic so far, decoded, oldest first.

        Args:
            topic: Name of the topic without a prefix, as in the catalogue, such as "tamiyo.adaptation.outcomes".

        Raises:
            ConfigurationError: There is no such topic.
        """
        if topic not in BY_NAME:
            raise ConfigurationError(f"there is no topic {topic!r}; there are {', '.join(BY_NAME)}")
        return [decode(data, BY_NAME[topic].record) for data in self._topics[topic]]

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[CompiledKernel], None]) -> None:
        """Begin to carry a run; called by `attach`. Raises ConfigurationError if it carries one already."""
        if self._run_id:
            raise ConfigurationError(f"this transport carries run {self._run_id}: make a MemoryTransport for each run")
        self._run_id = run_id
        self._on_kernel = on_kernel
        self.connected = True

    def publish(self, topic: Topic, make: Make) -> None:
        """Keep a record of the run; an invalid one is dropped and counted, as over Kafka."""
        if self.closed:
            self.dropped += 1
            return
        try:
            self._topics[topic.name].append(encode(make()))
        except (TamiyoError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            self.dropped += 1
            log.warning("an invalid record on %s was dropped: %s", topic.name, error)
        else:
            self.published += 1

    def receive(self) -> Sequence[InboundRecord]:
        """Return what was sent since the last call."""
        arrived = []
        while self._inbox:
            arrived.append(self._inbox.popleft())
        return arrived

    def close(self, timeout_s: float) -> None:
        """Stop keeping records; those so far stay readable."""
        self.closed = True

    def _topology(self) -> ModelTopology:
        found = self.records(TOPOLOGY.name)
        if not found:
            raise ConfigurationError("no run is attached: pass this transport to attach(..., transport=...) first")
        topology: ModelTopology = found[-1]
        return topology

    def _decision(self, action: Action, topology: ModelTopology) -> AdaptationDecision:
        """Return the decision for `action`, as if it were the only legal one, about the last published frame."""
        frames = self.records(MODEL_PERFORMANCE.name)
        graph = graph_id(f"{topology.run_id}/{len(self._topics[DECISIONS.name])}", topology.topology_id)
        own_id = decision_id(graph)
        layers = [node.layer_id for node in topology.layers]
        kinds = [f"load_kernel:{name}" for name in names()]
        kinds += [DecisionType.UNLOAD_KERNEL, DecisionType.FOSSILIZE_KERNEL, DecisionType.OPTIMIZE_PARAMETERS]
        index = 0
        if action.layer_id is not None:
            kind = f"{action.type}:{action.blueprint}" if action.blueprint else action.type
            index = 1 + layers.index(action.layer_id) * len(kinds) + kinds.index(kind)
        chosen = [float(entry == index) for entry in range(1 + len(layers) * len(kinds))]
        return AdaptationDecision(
            run_id=topology.run_id,
            decision_id=own_id,
            graph_id=graph,
            step=frames[-1].step if frames else 0,
            time_ms=int(time.time() * 1000),
            type=action.type,
            layer_id=action.layer_id,
            blueprint=action.blueprint,
            kernel_id=kernel_id(own_id) if action.type == DecisionType.LOAD_KERNEL else None,
            proposed=action,
            confidence=1.0,
            uncertainty=0.0,
            urgency=0.0,
            predicted_reward=0.0,
            value=0.0,
            method="baseline",
            policy_version=0,
            seed=sampling_seed(own_id),
            temperature=1.0,
            layers=layers,
            kinds=kinds,
            action_index=index,
            mask=bytes(int(share) for share in chosen),
            probabilities=Tensor.of(chosen),
            log_probability=0.0,
            entropy=0.0,
            explanation="Made by MemoryTransport.decide.",
        )

    def _compile(self, decision: AdaptationDecision, topology: ModelTopology) -> CompiledKernel:
        """Compile and store the kernel of a decision; return the record of it, or of the reason why not."""
        assert self.store_url is not None
        try:
            return compile_decision(decision, topology, KernelStore(self.store_url))
        except KernelError as error:
            return refused_kernel(decision, str(error))


def _action(kind: DecisionType | str, layer: str | None, blueprint: str | None, topology: ModelTopology) -> Action:
    """Return the action. Raises ConfigurationError if kind, layer and blueprint do not make one."""
    kinds = [str(each) for each in DecisionType]
    if kind not in kinds:
        raise ConfigurationError(f"there is no kind of decision {str(kind)!r}; there are {', '.join(kinds)}")
    layers = [node.layer_id for node in topology.layers]
    if kind == DecisionType.NO_OP:
        if layer is not None or blueprint is not None:
            raise ConfigurationError("no_op takes neither a layer nor a blueprint")
        return Action(type=kind)
    if layer not in layers:
        raise ConfigurationError(f"{kind}: there is no layer {layer!r}; there are {', '.join(layers)}")
    if kind == DecisionType.LOAD_KERNEL:
        try:
            find_blueprint(blueprint or "")
        except KernelError as error:
            raise ConfigurationError(str(error)) from error
    elif blueprint is not None:
        raise ConfigurationError(f"{kind} takes no blueprint, got {blueprint!r}")
    return Action(type=kind, layer_id=layer, blueprint=blueprint)
