"""The surroundings of the installation while faults happen: training runs that publish, and hosts that execute.

Both record in the ledger what the broker acknowledged and what was executed. From the times follows how long after each
fault the installation again decided on every partition.
"""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.partitioner import murmur2
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, topology
from tamiyo.evaluation.faults.ledger import Execution, Ledger, Place, Sent
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, KernelStatus, OutcomeStatus
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import DECISIONS, KERNELS, OUTCOMES, TELEMETRY, TOPOLOGY

# No delivery timeout: a message waits for the broker, and is lost only if the broker loses it.
NO_TIMEOUT = {**PRODUCER, "message.timeout.ms": 0, "log_level": 0, "reconnect.backoff.max.ms": 1_000}
FLUSH_S = 120.0
IDLE_S = 20.0  # without a fault a decision arrives every second
POISON_EVERY = 20  # ticks


def partition_of(run_id: str, partitions: int) -> int:
    """Return the partition that the common partitioner chooses for a run."""
    return int((murmur2(run_id.encode()) & 0x7FFFFFFF) % partitions)


@dataclass(slots=True)
class _Run:
    run_id: str
    steps: Iterator[Sequence[Record]]


class Telemetry:
    """Publishes simulated runs on every partition; when one ends, another begins."""

    def __init__(
        self,
        kafka: KafkaSettings,
        names: TopicNames,
        ledger: Ledger,
        *,
        seed: int,
        partitions: int,
        tick_s: float = 0.4,
    ) -> None:
        self.finished: list[str] = []
        """Runs whose last frames were sent."""
        self.sent_at: dict[tuple[str, int], float] = {}
        """Monotonic time at which a run's sampled step was handed to the producer."""
        self._names = names
        self._ledger = ledger
        self._partitions = partitions
        self._tick_s = tick_s
        self._random = random.Random(seed)
        self._count = 0
        self._producer: Any = Producer(kafka.librdkafka(**NO_TIMEOUT))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._failed: BaseException | None = None

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def finish(self) -> None:
        """End every run at once, and return when the broker has everything."""
        self._stop.set()
        self._thread.join()
        if self._failed is not None:
            raise BrokerError(f"telemetry could not be published: {self._failed!r}") from self._failed
        if self._producer.flush(FLUSH_S):
            raise BrokerError(f"the broker did not acknowledge all telemetry within {FLUSH_S:.0f} s")

    def _run(self) -> None:
        try:
            # Two runs on one partition, so that they interleave there; one on each of the others.
            runs = [self._begin(number % self._partitions) for number in range(self._partitions + 1)]
            ticks = 0
            while runs:
                stopping = self._stop.is_set()
                ticks += 1
                for run in list(runs):
                    step = next(run.steps, None)
                    if step is not None:
                        self._publish(run.run_id, step)
                        continue
                    self.finished.append(run.run_id)
                    runs.remove(run)
                    if not stopping:
                        runs.append(self._begin(partition_of(run.run_id, self._partitions)))
                if ticks % POISON_EVERY == 0 and not stopping:
                    self._poison(self._random.choice(runs).run_id, ticks)
                self._producer.poll(0)
                self._stop.wait(0.01 if stopping else self._tick_s)
        except BaseException as error:
            self._failed = error

    def _begin(self, partition: int) -> _Run:
        while True:
            self._count += 1
            load = Load(
                runs=1, layers=4, frames=self._random.randint(40, 90), seed=self._count, name=f"run-{self._count}"
            )
            (run_id,) = load.run_ids
            if partition_of(run_id, self._partitions) == partition:
                self._send(TOPOLOGY.name, run_id, encode(topology(run_id, load.layers)))
                return _Run(run_id, sampled_steps(load, 0))

    def _publish(self, run_id: str, step: Sequence[Record]) -> None:
        last: Any = step[-1]
        self.sent_at[run_id, last.step] = time.monotonic()
        for record in step:
            self._send(TOPICS[type(record)].name, run_id, encode(record))

    def _poison(self, run_id: str, number: int) -> None:
        topic = self._random.choice(TELEMETRY)
        self._send(topic.name, run_id, b"no record, number %d" % number, valid=False)

    def _send(self, topic: str, key: str, value: bytes, *, valid: bool = True) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self._failed = BrokerError(f"{topic}: {error}")
            else:
                place = (message.partition(), message.offset())
                self._ledger.sent.append(Sent(topic, *place, key.encode(), value, valid))

        partition = partition_of(key, self._partitions)
        self._producer.produce(self._names.full(topic), value, key, partition, on_delivery=delivered)


class Host:
    """The hosts of all runs: execute each decision once and publish its outcome."""

    def __init__(
        self, kafka: KafkaSettings, names: TopicNames, ledger: Ledger, telemetry: Telemetry, partitions: int
    ) -> None:
        self.ended: set[str] = set()
        """Runs whose last graph is decided."""
        self.types: dict[str, int] = defaultdict(int)
        """Decisions received, by type."""
        self._names = names
        self._ledger = ledger
        self._telemetry = telemetry
        self._partitions = partitions
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
        places = [(topic.name, number) for topic in (DECISIONS, KERNELS) for number in range(self._partitions)]
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
            for number in range(self._partitions)
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
                if time.monotonic() - received > IDLE_S:
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
        partition = partition_of(decision.run_id, self._partitions)
        self._producer.produce(self._names.full(OUTCOMES.name), encode(outcome), decision.run_id, partition)
