"""Kernels: builds, checks and stores the kernel that a decision asks for, and says where it is or why there is none.

The kernel's id and the seed of its first weights follow from the decision's id, so the same decision gives the same
kernel however often it is compiled. A decision whose run's topology has not come yet waits for it, not for ever.
"""

import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.kernels.compiler import compile_kernel
from tamiyo.host.kernels.store import KernelStore, StoredKernel
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, DecisionType, KernelStatus
from tamiyo.schemas.errors import KernelError
from tamiyo.schemas.identity import kernel_id
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import DECISIONS, KERNELS, TOPOLOGY, Topic
from tamiyo.streams.settings import KernelSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.recent_ids import RecentIds

log = structlog.get_logger(__name__)

MAX_REASON = 2000  # what a record's text may hold
REMEMBERED = 20_000  # kernels told of; more than are ever read again after a restart


@dataclass(slots=True)
class _Waiting:
    incoming: Incoming
    since_ms: int | None = None


class KernelsStage(Stage):
    """The kernels of one partition."""

    name: ClassVar[str] = "kernels"
    inputs: ClassVar[tuple[Topic, ...]] = (DECISIONS,)
    outputs: ClassVar[tuple[Topic, ...]] = (KERNELS,)
    views: ClassVar[tuple[Topic, ...]] = (TOPOLOGY,)
    offload: ClassVar[bool] = True
    """Building and storing take longer than the process's other stages may wait."""

    def __init__(self, partition: int, settings: KernelSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self._topologies: View[ModelTopology] = views[TOPOLOGY.name]
        self._store = KernelStore(settings.store_url)
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._told = RecentIds(REMEMBERED)

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which kernels were told of: they are neither built nor stored again."""
        for each in said:
            self._told.add(each.record.kernel_id)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Compile for every decision that a host is to execute by loading a kernel."""
        said: list[Output | Reject] = []
        for incoming in batch:
            decision: AdaptationDecision = incoming.record
            name = kernel_id(decision.decision_id)
            wanted = decision.type == DecisionType.LOAD_KERNEL and not decision.dry_run
            if not wanted or name in self._told or name in self._waiting:
                continue
            if self._topologies.get(decision.run_id) is not None:
                said.append(self._compile(incoming))
                continue
            self._waiting[name] = _Waiting(incoming)
            if len(self._waiting) > self.settings.max_waiting:
                said.append(self._give_up(self._waiting.popitem(last=False)[1]))
        return said

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Compile what waited for a topology that has come; refuse what has waited too long."""
        said: list[Output | Reject] = []
        for name, waiting in list(self._waiting.items()):
            if waiting.since_ms is None:
                waiting.since_ms = now_ms
            if self._topologies.get(waiting.incoming.record.run_id) is not None:
                said.append(self._compile(self._waiting.pop(name).incoming))
            elif now_ms - waiting.since_ms >= 1000 * self.settings.topology_timeout_s:
                said.append(self._give_up(self._waiting.pop(name)))
        return said

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset of the decisions that wait."""
        if not self._waiting:
            return {}
        return {DECISIONS.name: min(waiting.incoming.offset for waiting in self._waiting.values())}

    def _compile(self, incoming: Incoming) -> Output:
        decision: AdaptationDecision = incoming.record
        topology = self._topologies.get(decision.run_id)
        started = time.perf_counter()
        try:
            stored = build(decision, topology, self._store)
        except KernelError as error:
            log.warning("a kernel is refused", run_id=decision.run_id, decision_id=decision.decision_id,
                        layer=decision.layer_id, blueprint=decision.blueprint, reason=str(error))  # fmt: skip
            return self._refuse(incoming, str(error))
        self._told.add(stored.kernel_id)
        record = CompiledKernel(
            run_id=decision.run_id,
            kernel_id=stored.kernel_id,
            decision_id=decision.decision_id,
            layer_id=decision.layer_id or "",
            blueprint=decision.blueprint or "",
            status=KernelStatus.COMPILED,
            checksum=stored.checksum,
            size_bytes=stored.size_bytes,
            parameters=stored.parameters,
            compile_time_ms=1000 * (time.perf_counter() - started),
        )
        return Output(KERNELS, record, record.kernel_id, incoming)

    def _give_up(self, waiting: _Waiting) -> Output:
        return self._refuse(waiting.incoming, f"the topology of run {waiting.incoming.record.run_id} never came")

    def _refuse(self, incoming: Incoming, reason: str) -> Output:
        decision: AdaptationDecision = incoming.record
        name = kernel_id(decision.decision_id)
        self._told.add(name)
        record = CompiledKernel(
            run_id=decision.run_id,
            kernel_id=name,
            decision_id=decision.decision_id,
            # A decision without a layer or blueprint is refused too, and both columns need a name.
            layer_id=decision.layer_id or "none",
            blueprint=decision.blueprint or "none",
            status=KernelStatus.REFUSED,
            reason=reason[:MAX_REASON],
        )
        return Output(KERNELS, record, name, incoming)


def build(decision: AdaptationDecision, topology: ModelTopology | None, store: KernelStore) -> StoredKernel:
    """Build, check and store the kernel of a decision. Raises KernelError with the reason not to."""
    if topology is None:
        raise KernelError(f"the topology of run {decision.run_id} is not known")
    if decision.layer_id is None or decision.blueprint is None:
        raise KernelError("a load_kernel decision names a layer and a blueprint, this one does not")
    layer = next((each for each in topology.layers if each.layer_id == decision.layer_id), None)
    if layer is None:
        raise KernelError(f"run {decision.run_id} has no layer {decision.layer_id!r}")
    if layer.protected:
        raise KernelError(f"layer {decision.layer_id!r} is protected")
    try:
        spec = json.loads(layer.spec)
    except (ValueError, RecursionError) as error:  # RecursionError: two thousand brackets are a text, too
        raise KernelError(f"the spec of layer {decision.layer_id!r} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise KernelError(f"the spec of layer {decision.layer_id!r} is not a JSON object")
    return compile_kernel(
        LayerSpec.from_dict(spec),
        decision.blueprint,
        kernel_id(decision.decision_id),
        store,
        parameter_budget=topology.parameter_budget,
    )
