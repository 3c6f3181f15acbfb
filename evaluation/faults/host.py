"""The hosts of the simulated runs: they execute decisions, record that in the ledger, and publish the outcomes.

From the times at which decisions arrive follows how long after each fault the installation again decided on every
partition.
"""

import threading
import time
from collections import Counter, defaultdict
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tamiyo.evaluation.faults.ledger import Execution, Ledger, Place
from tamiyo.evaluation.faults.telemetry import FLUSH_S, NO_TIMEOUT, Telemetry
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, KernelStatus, OutcomeStatus
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, KERNELS, OUTCOMES
from tamiyo.streams.admin.growth import own_partition

IDLE_S = 20.0  # without a fault a decision arrives every second


class Host:
    """The hosts of all runs: execute each decision once and publish its outcome."""

    def __init__(self, kafka: KafkaSettings, names: TopicNames, ledger: Ledger, telemetry: Telemetry) -> None:
        self.ended: set[str] = set()
        """Runs whose last graph is decided."""
        self.types: dict[str, int] = defaultdict(int)
        """Decisions received, by type."""
        self._names = names
        self._ledger = ledger
        self._telemetry = telemetry
        self._assigned = 0
        """Partitions of each topic that are read."""
        self._progress: dict[int, list[tuple[float, float]]] = defaultdict(list)
        """By partition: when a decision arrived, and when its telemetry was sent (monotonic, s)."""
        self.errors: Counter[str] = Counter()
        """Errors of the consumer, by name."""
        self.reassigned = 0
        """How often no message arrived for so long that the partitions were assigned anew."""
        self._next: dict[Place, int] = {}
        self._seen: set[str] = set()
        self._waiting: dict[str, AdaptationDecision] = {}
        self._kernels: dict[str, Any] = {}
        self._consumer: Any = Consumer(
            kafka.librdkafka(
                **{"group.id": "tamiyo-faults-host", "enable.auto.commit": False, "log_level": 0},
                **{"reconnect.backoff.max.ms": 1_000, "topic.metadata.refresh.interval.ms": 5_000},
            )
        )
        self._producer: Any = Producer(kafka.librdkafka(**NO_TIMEOUT))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="host", daemon=True)

    def start(self) -> None:
        """Begin to execute decisions."""
        self._assign()
        self._thread.start()

    def _assign(self) -> None:
        self._assigned = self._telemetry.partitions
        places = [
            (topic.name, number) for topic in (DECISIONS, KERNELS) for number in range(self._telemetry.partitions)
        ]
        self._consumer.assign(
            [
                TopicPartition(self._names.full(name), number, self._next.get((name, number), OFFSET_BEGINNING))
                for name, number in places
            ]
        )

    def stop(self) -> None:
        """Stop executing."""
        self._stop.set()
        self._thread.join()
        self._producer.flush(FLUSH_S)
        self._consumer.close()

    def recovered(self, since: float) -> float | None:
        """Return the seconds from monotonic time `since` until every partition had decided on telemetry sent later."""
        firsts = [
            next((arrived for arrived, sent in list(self._progress[number]) if sent >= since), None)
            for number in range(self._telemetry.partitions)
        ]
        return None if None in firsts else max(arrived - since for arrived in firsts if arrived is not None)

    def _run(self) -> None:
        received = time.monotonic()
        while not self._stop.is_set():
            self._producer.poll(0)
            message = self._consumer.poll(0.1)
            if message is None or message.error() or message.value() is None:
                if message is not None and message.error():
                    self.errors[message.error().name()] += 1
                if self._assigned != self._telemetry.partitions:
                    self._assign()
                elif time.monotonic() - received > IDLE_S:
                    self.reassigned += 1
                    received = time.monotonic()
                    self._assign()
                continue
            received = time.monotonic()
            self._next[self._names.bare(message.topic()), message.partition()] = message.offset() + 1
            if message.topic() == self._names.full(DECISIONS.name):
                self._decide(decode(message.value(), AdaptationDecision), message.partition())
            else:
                kernel: Any = decode(message.value(), KERNELS.record)
                self._kernels[kernel.kernel_id] = kernel
                if kernel.kernel_id in self._waiting:
                    self._execute(self._waiting.pop(kernel.kernel_id), kernel)

    def _decide(self, decision: AdaptationDecision, partition: int) -> None:
        if decision.decision_id in self._seen:
            return
        self._seen.add(decision.decision_id)
        self.types[decision.type] += 1
        sent = self._telemetry.sent_at.get((decision.run_id, decision.step))
        if sent is not None:
            self._progress[partition].append((time.monotonic(), sent))
        if any(veto.by == "run" for veto in decision.vetoes):
            self.ended.add(decision.run_id)
        if decision.type == DecisionType.NO_OP or decision.dry_run:
            return
        if decision.type == DecisionType.LOAD_KERNEL and decision.kernel_id not in self._kernels:
            self._waiting[decision.kernel_id or ""] = decision
        else:
            self._execute(decision, self._kernels.get(decision.kernel_id or ""))

    def _execute(self, decision: AdaptationDecision, kernel: Any) -> None:
        refused = kernel is not None and kernel.status != KernelStatus.COMPILED
        if not refused:
            self._ledger.executions.append(Execution(decision.decision_id, decision.graph_id, decision.run_id))
        outcome = AdaptationOutcome(
            run_id=decision.run_id,
            outcome_id=outcome_id(decision.decision_id),
            decision_id=decision.decision_id,
            step=decision.step + 1,
            time_ms=decision.time_ms + 1,
            type=decision.type,
            layer_id=decision.layer_id,
            blueprint=decision.blueprint,
            kernel_id=decision.kernel_id,
            status=OutcomeStatus.FAILED if refused else OutcomeStatus.EXECUTED,
            reason=f"no_kernel: {kernel.reason}"[:2000] if refused else "",
        )
        partition = own_partition(decision.run_id.encode(), self._telemetry.partitions)
        topic, timestamp = self._names.full(OUTCOMES.name), self._telemetry.clock(partition)
        self._producer.produce(topic, encode(outcome), decision.run_id, partition, timestamp=timestamp)
