"""Kernels: builds, checks and stores the kernel of each load decision, and publishes its checksum or why it is refused.

The kernel's id and the seed of its first weights follow from the decision's id, so the same decision gives the same
kernel however often it is compiled. A decision waits for its run's topology, up to a timeout.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from tamiyo.host._kernels.compiler import compile_decision, refused_kernel
from tamiyo.host._kernels.store import KernelStore
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, DecisionType
from tamiyo.schemas.errors import KernelError
from tamiyo.schemas.identity import kernel_id
from tamiyo.schemas.stores import require_writable
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import DECISIONS, KERNELS, TOPOLOGY, Topic
from tamiyo.streams.settings import KernelSettings, store_setting
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.recent_ids import RecentIds

log = structlog.get_logger(__name__)

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

    @classmethod
    def check(cls, settings: KernelSettings) -> None:
        """Raise ConfigurationError if the kernel store cannot be written."""
        require_writable(settings.store_url, store_setting(KernelSettings, "store_url"))

    @classmethod
    def stores(cls, settings: KernelSettings) -> Mapping[str, bool]:
        """Return the kernel store, which the stage writes to."""
        return {settings.store_url: True}

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
            topology = self._topologies.get(decision.run_id)
            if topology is not None:
                result.append(self._compile(incoming, topology))
                continue
            self._waiting[name] = _Waiting(incoming)
            if len(self._waiting) > self.settings.max_waiting:
                result.append(self._refuse_waiting(self._waiting.popitem(last=False)[1]))
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Compile the kernels whose topology has arrived, and refuse those that have waited too long.

        Args:
            now_ms: The steady clock, ms since the epoch.

        Returns:
            Their records.
        """
        result: list[Output | Reject] = []
        for name, waiting in list(self._waiting.items()):
            if waiting.since_ms is None:
                waiting.since_ms = now_ms
            topology = self._topologies.get(waiting.incoming.record.run_id)
            if topology is not None:
                result.append(self._compile(self._waiting.pop(name).incoming, topology))
            elif now_ms - waiting.since_ms >= 1000 * self.settings.topology_timeout_s:
                result.append(self._refuse_waiting(self._waiting.pop(name)))
        return result

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset of the decisions that wait, by topic."""
        if not self._waiting:
            return {}
        return {DECISIONS.name: min(waiting.incoming.offset for waiting in self._waiting.values())}

    def forget(self, output: Output) -> None:
        """Let a decision whose kernel's record was too large be compiled again."""
        self._published.discard(output.identity)

    def _compile(self, incoming: Incoming, topology: ModelTopology) -> Output:
        decision: AdaptationDecision = incoming.record
        try:
            record = compile_decision(decision, topology, self._store)
        except KernelError as error:
            log.warning("kernel refused", run_id=decision.run_id, decision_id=decision.decision_id,
                        layer=decision.layer_id, blueprint=decision.blueprint, reason=str(error))  # fmt: skip
            record = refused_kernel(decision, str(error))
        return self._output(incoming, record)

    def _refuse_waiting(self, waiting: _Waiting) -> Output:
        decision: AdaptationDecision = waiting.incoming.record
        return self._output(
            waiting.incoming, refused_kernel(decision, f"no topology of run {decision.run_id} has arrived")
        )

    def _output(self, incoming: Incoming, record: CompiledKernel) -> Output:
        self._published.add(record.kernel_id)
        return Output(KERNELS, record, record.kernel_id, incoming)
