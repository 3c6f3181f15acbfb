"""Sends dead letters back to where they came from, each once, however often it is asked for.

For a batch of letters of one partition: a claim is written to the dead letters, with the offset at which the source
partition ends; the letters are published there, each naming its place among the dead letters in a header; a receipt is
written. Whoever comes later skips what has a receipt. Where there is a claim and no receipt, somebody is at it just
now, or died at it: after `CLAIM_S` the source is read from the claimed offset on, and what is found there was sent.
"""

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import PRODUCER, KafkaSettings
from tamiyo.streams.admin.dead_letter import NOTE_HEADER, DeadLetter, DeadLetterPartition
from tamiyo.streams.admin.dead_letters import DeadLetters

REDRIVEN_HEADER = "tamiyo-redriven"
"""On a message that came back: its place among the dead letters."""
BATCH = 100
CLAIM_S = 60.0  # a claim without a receipt holds others off for so long
DELIVERY_S = 20.0  # what was not delivered by then never will be
NOTE_KEY = NOTE_HEADER.encode()  # so that a foreign tool sees what they are


class Redrive:
    """One call of `tamiyo dlq redrive`. A context manager, over dead letters that are open."""

    def __init__(
        self,
        letters: DeadLetters,
        kafka: KafkaSettings,
        *,
        session: str | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._letters = letters
        self._session = session or uuid.uuid4().hex
        self._clock_ms = clock_ms
        self._failed: list[str] = []
        self._producer = Producer(
            kafka.librdkafka(log_level=0, **PRODUCER, **{"delivery.timeout.ms": round(1000 * DELIVERY_S)})
        )

    def __enter__(self) -> "Redrive":
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.flush(DELIVERY_S)

    def send(self, box: DeadLetterPartition, wanted: Sequence[DeadLetter]) -> Iterator[tuple[str, int]]:
        """Send the `wanted` letters of a box back; yield what became of some of them, and how many, as it goes.

        `sent`; `found`: an earlier call sent them, but died before it could say so; `claimed`: another call is at it
        just now; `done`: they went back meanwhile.

        Raises BrokerError where a delivery fails. To call again is right then: nothing goes back twice.
        """
        for first in range(0, len(wanted), BATCH):
            yield from Counter(self._batch(box, list(wanted[first : first + BATCH]))).items()

    def _batch(self, box: DeadLetterPartition, batch: list[DeadLetter]) -> Iterator[str]:
        source = self._letters.names.full(box.topic.name)
        _, end = self._letters.marks(source, box.partition)
        began = time.monotonic()
        claim = self._note(box, "claim", batch, session=self._session, end=end)
        self._letters.read_on(box)
        fresh: list[DeadLetter] = []
        doubtful: list[tuple[DeadLetter, int]] = []
        for letter in batch:
            # Who claimed first in the log has it. The clocks of two machines that redrive agree within seconds.
            before = [each for each in box.claims.get(letter.offset, ()) if each.offset < claim]
            if letter.offset in box.redriven:
                yield "done"
            elif any(self._clock_ms() - each.timestamp_ms < 1000 * CLAIM_S for each in before):
                yield "claimed"
            elif before:
                doubtful.append((letter, min(each.end for each in before)))
            else:
                fresh.append(letter)
        found = self._sent_before(box, source, doubtful)
        for letter, _ in doubtful:
            if letter.place not in found:
                fresh.append(letter)
        if time.monotonic() - began > CLAIM_S - 2 * DELIVERY_S:
            raise BrokerError("the broker is too slow: a claim on letters ran out before they were sent; call again")
        for letter in sorted(fresh, key=lambda letter: letter.offset):
            self._produce(source, box.partition, letter.key, letter.value, {REDRIVEN_HEADER: letter.place})
        self._flush()
        settled = [*fresh, *(letter for letter, _ in doubtful if letter.place in found)]
        if settled:
            self._note(box, "receipt", settled)
            box.redriven.update(letter.offset for letter in settled)
        yield from ["sent"] * len(fresh) + ["found"] * (len(settled) - len(fresh))

    def _sent_before(
        self, box: DeadLetterPartition, source: str, doubtful: Sequence[tuple[DeadLetter, int]]
    ) -> set[str]:
        """Return the places of those letters that lie on the source already."""
        if not doubtful:
            return set()
        places = {letter.place for letter, _ in doubtful}
        found: set[str] = set()
        for message in self._letters.messages(source, box.partition, min(end for _, end in doubtful)):
            for name, value in message.headers() or []:
                if name == REDRIVEN_HEADER and value is not None:
                    found.add(value.decode("utf-8", "replace"))
            if places <= found:
                break
        return places & found

    def _note(self, box: DeadLetterPartition, kind: str, batch: Sequence[DeadLetter], **facts: Any) -> int:
        """Write a note to the dead letters; return its offset once it is there."""
        offsets: list[int] = []
        value = json.dumps({"letters": [letter.offset for letter in batch], **facts}).encode()
        full = self._letters.names.full(box.topic.dead_letters)
        self._produce(full, box.partition, NOTE_KEY, value, {NOTE_HEADER: kind}, offsets.append)
        self._flush()
        return offsets[0]

    def _produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: dict[str, str],
        at: Callable[[int], Any] = lambda _: None,
    ) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failed.append(f"{topic}/{partition}: {error.str()}")
            else:
                at(message.offset())

        self._producer.produce(
            topic, value, key, partition, headers=[(n, v.encode()) for n, v in headers.items()], on_delivery=delivered
        )

    def _flush(self) -> None:
        left = self._producer.flush(DELIVERY_S + 5)
        if left or self._failed:
            raise BrokerError(
                f"not everything was delivered ({self._failed[0] if self._failed else f'{left} messages left'}); "
                "call again: nothing goes back twice"
            )
