"""Republishes dead letters to the topics they were rejected from, each exactly once.

For each batch of one partition:

1. A claim is written to the dead-letter topic, with the current end of the source partition.
2. The dead letters are published to the source topic, each with its producer's headers, and its place on the
   dead-letter topic in another one.
3. A receipt is written to the dead-letter topic.

A later redrive skips what has a receipt. A claim without a receipt belongs to a redrive in progress, or to one that
crashed. After `CLAIM_S` the source partition is read from the claimed end on; what is found there was republished.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.streams.admin.dead_letter import DeadLetter, DeadLetterPartition
from tamiyo.streams.admin.dead_letters import DeadLetters
from tamiyo.streams.headers import NOTE_HEADER, REDRIVEN_HEADER

BATCH = 100
CLAIM_S = 60.0  # how long a claim without a receipt blocks other redrives
DELIVERY_S = 20.0  # a message not delivered by then never will be
NOTE_KEY = NOTE_HEADER.encode()  # shows other tools what these messages are


class Redrive:
    """One call of `tamiyo dlq redrive`."""

    def __init__(
        self,
        dead_letters: DeadLetters,
        kafka: KafkaSettings,
        *,
        session: str | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`dead_letters` must be open, and stays open."""
        self._dead_letters = dead_letters
        self._session = session or uuid.uuid4().hex
        self._clock_ms = clock_ms
        self._producer = AwaitedProducer(kafka, timeout_s=DELIVERY_S)

    def send(self, partition: DeadLetterPartition, wanted: Sequence[DeadLetter]) -> Iterator[tuple[str, int]]:
        """Republish dead letters of a partition.

        Args:
            partition: read to its end, or nearly: it is read on.
            wanted: dead letters of the partition that are waiting.

        Yields:
            A result and how many dead letters had it, batch by batch. `sent`: republished; `found`: an earlier redrive
            republished them but crashed before its receipt; `claimed`: another redrive is in progress; `done`: another
            redrive republished them meanwhile.

        Raises:
            BrokerError: a delivery failed. Calling again is safe: nothing is published twice.
        """
        for first in range(0, len(wanted), BATCH):
            yield from Counter(self._batch(partition, list(wanted[first : first + BATCH]))).items()

    def _batch(self, partition: DeadLetterPartition, batch: list[DeadLetter]) -> Iterator[str]:
        source = self._dead_letters.names.full(partition.topic.name)
        end = self._dead_letters.end(source, partition.partition)
        started = time.monotonic()
        claim = self._note(partition, "claim", batch, session=self._session, end=end)
        self._dead_letters.read_on(partition)
        fresh: list[DeadLetter] = []
        doubtful: list[tuple[DeadLetter, int]] = []
        for each in batch:
            # The first claim in the log wins. Clocks of two machines that redrive agree within seconds.
            before = [earlier for earlier in partition.claims.get(each.offset, ()) if earlier.offset < claim]
            if each.offset in partition.redriven:
                yield "done"
            elif any(self._clock_ms() - earlier.timestamp_ms < 1000 * CLAIM_S for earlier in before):
                yield "claimed"
            elif before:
                doubtful.append((each, min(earlier.end for earlier in before)))
            else:
                fresh.append(each)
        found = self._republished(partition, source, doubtful)
        fresh += [each for each, _ in doubtful if each.place not in found]
        if time.monotonic() - started > CLAIM_S - 2 * DELIVERY_S:
            raise BrokerError(
                "the broker is too slow: the claim expired before the dead letters were sent; call again, nothing is "
                "published twice"
            )
        for each in sorted(fresh, key=lambda dead_letter: dead_letter.offset):
            headers = [*each.producer_headers, (REDRIVEN_HEADER, each.place.encode())]
            self._producer.produce(source, each.value, each.key, partition=partition.partition, headers=headers)
        self._flush()
        settled = [*fresh, *(each for each, _ in doubtful if each.place in found)]
        if settled:
            self._note(partition, "receipt", settled)
            partition.redriven.update(each.offset for each in settled)
        yield from ["sent"] * len(fresh) + ["found"] * (len(settled) - len(fresh))

    def _republished(
        self, partition: DeadLetterPartition, source: str, doubtful: Sequence[tuple[DeadLetter, int]]
    ) -> set[str]:
        """Return the places of the dead letters that are on the source topic already."""
        if not doubtful:
            return set()
        places = {each.place for each, _ in doubtful}
        found: set[str] = set()
        first = min(end for _, end in doubtful)
        for message in self._dead_letters.messages(source, partition.partition, first):
            for name, value in message.headers() or []:
                if name == REDRIVEN_HEADER and value is not None:
                    found.add(value.decode("utf-8", "replace"))
            if places <= found:
                break
        return places & found

    def _note(self, partition: DeadLetterPartition, kind: str, batch: Sequence[DeadLetter], **fields: Any) -> int:
        """Write a note to the dead-letter topic; return its offset once it is delivered."""
        offsets: list[int] = []
        self._producer.produce(
            self._dead_letters.names.full(partition.letters),
            json.dumps({"letters": [each.offset for each in batch], **fields}).encode(),
            NOTE_KEY,
            partition=partition.partition,
            headers=[(NOTE_HEADER, kind.encode())],
            on_delivery=lambda message: offsets.append(message.offset()),
        )
        self._flush()
        return offsets[0]

    def _flush(self) -> None:
        try:
            self._producer.flush()
        except BrokerError as error:
            raise BrokerError(
                f"not everything was delivered: {error}; call again, nothing is published twice"
            ) from error
