"""Training runs that publish simulated telemetry, and record in the ledger what the broker acknowledged."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, topology
from tamiyo.evaluation.faults.ledger import Ledger, Sent
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings, TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import TELEMETRY, TOPOLOGY, Topic
from tamiyo.streams.admin.growth import own_partition

# No delivery timeout: a message waits for the broker, and is lost only if the broker loses it. What goes to a partition
# unknown to the producer is refused at once, so its metadata must be fresh when `tamiyo topics grow` has ended.
NO_TIMEOUT = {
    **PRODUCER, "message.timeout.ms": 0, "log_level": 0, "reconnect.backoff.max.ms": 1_000,
    "topic.metadata.refresh.interval.ms": 5_000,
}  # fmt: skip
FLUSH_S = 120.0
POISON_EVERY = 20  # ticks
LAYERS = 4
FRAMES = (40, 90)  # sampled steps of a run, at least and at most


@dataclass(frozen=True, slots=True)
class Guest:
    """A run that a fault brings: no other begins when it ends."""

    partition: int
    frames: int
    layers: int = LAYERS
    at_once: bool = False
    """Publish everything without a pause."""
    decided: bool = True
    """Whether the installation decides on it to its end."""
    encoding: Callable[[Record], bytes] | None = None
    """As its host writes records, where it is of another release than the others."""


@dataclass(slots=True)
class _Run:
    run_id: str
    partition: int
    steps: Iterator[Sequence[Record]]
    guest: Guest | None
    over: threading.Event = field(default_factory=threading.Event)


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
        """Runs whose last frames were sent, and whose last decision must come."""
        self.sent_at: dict[tuple[str, int], float] = {}
        """Monotonic time at which a run's sampled step was handed to the producer."""
        self.clocks: dict[int, int] = {}
        """By partition, how far the clock of the host that trains its runs is ahead, ms."""
        self.encoding: Callable[[Record], bytes] = encode
        """As hosts write records."""
        self.partitions = partitions
        """Of every topic; may change between `finish` and `start`."""
        self._names = names
        self._ledger = ledger
        self._count = 0
        self._tick_s = tick_s
        self._random = random.Random(seed)
        self._guests: queue.SimpleQueue[tuple[Guest, threading.Event]] = queue.SimpleQueue()
        self._producer: Any = Producer(kafka.librdkafka(**NO_TIMEOUT))
        self._stop = threading.Event()
        self._thread = threading.Thread()
        self._failed: BaseException | None = None

    def start(self) -> None:
        """Begin to publish; again after `finish`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def invite(self, guests: Sequence[Guest]) -> None:
        """Publish further runs, and return when they have ended; any thread may call it."""
        waiting = [(guest, threading.Event()) for guest in guests]
        for each in waiting:
            self._guests.put(each)
        for _, over in waiting:
            while not over.wait(0.2) and self._thread.is_alive():
                pass

    def clock(self, partition: int) -> int:
        """Return what the clock of a partition's host shows, milliseconds since the epoch."""
        return round(1000 * time.time()) + self.clocks.get(partition, 0)

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
            runs = [self._begin(number % self.partitions) for number in range(self.partitions + 1)]
            ticks = 0
            while runs:
                stopping = self._stop.is_set()
                ticks += 1
                if not stopping:
                    runs += self._welcome()
                for run in list(runs):
                    if self._advance(run):
                        continue
                    runs.remove(run)
                    if run.guest is None and not stopping:
                        runs.append(self._begin(run.partition))
                if ticks % POISON_EVERY == 0 and not stopping:
                    self._poison(self._random.choice(runs).run_id, ticks)
                self._producer.poll(0)
                self._stop.wait(0.01 if stopping else self._tick_s)
        except BaseException as error:
            self._failed = error

    def _welcome(self) -> Iterator[_Run]:
        while not self._guests.empty():
            guest, over = self._guests.get()
            yield self._begin(guest.partition, guest, over)

    def _begin(self, partition: int, guest: Guest | None = None, over: threading.Event | None = None) -> _Run:
        frames = guest.frames if guest else self._random.randint(*FRAMES)
        layers = guest.layers if guest else LAYERS
        while True:
            self._count += 1
            number = self._count
            load = Load(runs=1, layers=layers, frames=frames, seed=number, name=f"run-{number}")
            (run_id,) = load.run_ids
            if own_partition(run_id.encode(), self.partitions) == partition:
                run = _Run(run_id, partition, sampled_steps(load, 0), guest, over or threading.Event())
                self._send(run, TOPOLOGY, topology(run_id, load.layers))
                return run

    def _advance(self, run: _Run) -> bool:
        """Publish a run's next step, or all of them; return whether it goes on."""
        at_once = run.guest is not None and run.guest.at_once
        while (step := next(run.steps, None)) is not None:
            self._publish(run, step)
            if not at_once:
                return True
            self._producer.poll(0)
        if run.guest is None or run.guest.decided:
            self.finished.append(run.run_id)
        run.over.set()
        return False

    def _publish(self, run: _Run, step: Sequence[Record]) -> None:
        last: Any = step[-1]
        self.sent_at[run.run_id, last.step] = time.monotonic()
        ahead = self.clocks.get(run.partition, 0)
        record: Any
        for record in step:
            shifted = record.model_copy(update={"time_ms": record.time_ms + ahead}) if ahead else record
            self._send(run, TOPICS[type(record)], shifted)

    def _poison(self, run_id: str, number: int) -> None:
        topic = self._random.choice(TELEMETRY)
        self._produce(topic.name, run_id, b"no record, number %d" % number, valid=False)

    def _send(self, run: _Run, topic: Topic, record: Record) -> None:
        self._produce(topic.name, run.run_id, ((run.guest and run.guest.encoding) or self.encoding)(record))

    def _produce(self, topic: str, key: str, value: bytes, *, valid: bool = True) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self._failed = BrokerError(f"{topic}: {error}")
            else:
                place = (message.partition(), message.offset())
                self._ledger.sent.append(Sent(topic, *place, key.encode(), value, valid))

        partition = own_partition(key.encode(), self.partitions)
        self._producer.produce(
            self._names.full(topic), value, key, partition, on_delivery=delivered, timestamp=self.clock(partition)
        )
