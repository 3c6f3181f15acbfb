"""Kernels: builds, checks and stores the kernel of each load decision, and publishes its checksum or why it is refused.

The kernel's id and the seed of its first weights follow from the decision's id, so the same decision gives the same
kernel however often it is compiled. A decision waits for its run's topology, up to a timeout.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.common import clock
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

MAX_REASON = 2000  # characters a record's text may have
MAX_PUBLISHED = 20_000  # kernels remembered as published; a restart never reads more decisions again


@dataclass(slots=True)
class _Waiting:
    incoming: Incoming
    since_ms: int | None = None
    """The first tick since the decision waits."""


class KernelsStage(Stage):
    """The kernels of one partition of decisions.

    Args:
        partition: The partition of `tamiyo.adaptation.decisions`.
        settings: The kernel store, and how many decisions wait for a topology and how long.
        views: The newest topology of each run, under the topology topic's name.
    """

    name: ClassVar[str] = "kernels"
    inputs: ClassVar[tuple[Topic, ...]] = (DECISIONS,)
    outputs: ClassVar[tuple[Topic, ...]] = (KERNELS,)
    views: ClassVar[tuple[Topic, ...]] = (TOPOLOGY,)
    offload: ClassVar[bool] = True
    """Building and storing would block the process's other stages for too long."""

    def __init__(self, partition: int, settings: KernelSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self._topologies: View[ModelTopology] = views[TOPOLOGY.name]
        self._store = KernelStore(settings.store_url)
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        """Decisions without a topology, by kernel id, the longest waiting first."""
        self._published = RecentIds(MAX_PUBLISHED)

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Restore which kernels were published: they are neither built nor stored again.

        Args:
            outputs: The kernels this partition has published, compiled and refused ones.
        """
        for output in outputs:
            self._published.add(output.record.kernel_id)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Compile the kernel of each decision that makes a host load one; dry runs need none.

        Args:
            batch: Decisions in order of their offsets.

        Returns:
            One `CompiledKernel` for each, compiled or refused with the reason, unless it has to wait for a topology.
        """
        result: list[Output | Reject] = []
        for incoming in batch:
            decision: AdaptationDecision = incoming.record
            name = kernel_id(decision.decision_id)
            needed = decision.type == DecisionType.LOAD_KERNEL and not decision.dry_run
            if not needed or name in self._published or name in self._waiting:
                continue
            if self._topologies.get(decision.run_id) is not None:
                result.append(self._compile(incoming))
                continue
            self._waiting[name] = _Waiting(incoming)
            if len(self._waiting) > self.settings.max_waiting:
                result.append(self._refuse_waiting(self._waiting.popitem(last=False)[1]))
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Compile the kernels whose topology has arrived, and refuse those that have waited too long.

        Args:
            now_ms: The wall clock, ms since the epoch.

        Returns:
            Their records.
        """
        result: list[Output | Reject] = []
        for name, waiting in list(self._waiting.items()):
            if waiting.since_ms is None:
                waiting.since_ms = now_ms
            if self._topologies.get(waiting.incoming.record.run_id) is not None:
                result.append(self._compile(self._waiting.pop(name).incoming))
            elif now_ms - waiting.since_ms >= 1000 * self.settings.topology_timeout_s:
                result.append(self._refuse_waiting(self._waiting.pop(name)))
        return result

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset of the decisions that wait, by topic."""
        if not self._waiting:
            return {}
        return {DECISIONS.name: min(waiting.incoming.offset for waiting in self._waiting.values())}

    def _compile(self, incoming: Incoming) -> Output:
        decision: AdaptationDecision = incoming.record
        topology = self._topologies.get(decision.run_id)
        started = clock.seconds()
        try:
            stored = build(decision, topology, self._store)
        except KernelError as error:
            log.warning("kernel refused", run_id=decision.run_id, decision_id=decision.decision_id,
                        layer=decision.layer_id, blueprint=decision.blueprint, reason=str(error))  # fmt: skip
            return self._refuse(incoming, str(error))
        self._published.add(stored.kernel_id)
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
            compile_time_ms=1000 * (clock.seconds() - started),
        )
        return Output(KERNELS, record, record.kernel_id, incoming)

    def _refuse_waiting(self, waiting: _Waiting) -> Output:
        return self._refuse(waiting.incoming, f"no topology of run {waiting.incoming.record.run_id} has arrived")

    def _refuse(self, incoming: Incoming, reason: str) -> Output:
        decision: AdaptationDecision = incoming.record
        name = kernel_id(decision.decision_id)
        self._published.add(name)
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
    """Build, check and store the kernel of a decision.

    Args:
        decision: A `load_kernel` decision.
        topology: The newest topology of its run; its parameter budget is the kernel's limit.
        store: Where the kernel is put.

    Returns:
        The stored kernel: its id, checksum, size in bytes and number of parameters.

    Raises:
        KernelError: The kernel cannot or must not be built; the message is the reason.
    """
    if topology is None:
        raise KernelError(f"no topology of run {decision.run_id} has arrived")
    if decision.layer_id is None or decision.blueprint is None:
        raise KernelError("a load_kernel decision needs a layer and a blueprint; this one lacks one")
    layer = next((each for each in topology.layers if each.layer_id == decision.layer_id), None)
    if layer is None:
        raise KernelError(f"run {decision.run_id} has no layer {decision.layer_id!r}")
    if layer.protected:
        raise KernelError(f"layer {decision.layer_id!r} is protected")
    try:
        spec = json.loads(layer.spec)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
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
