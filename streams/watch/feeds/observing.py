"""Turns messages into what a history takes."""

from collections.abc import Iterable

from tamiyo.schemas.errors import RegistryError, SchemaError
from tamiyo.schemas.topics import BY_NAME, CHECKPOINTS, CONTROL
from tamiyo.streams.headers import NOTE_HEADER, REASON_HEADER
from tamiyo.streams.messages import Message
from tamiyo.streams.watch.history import Observed
from tamiyo.streams.watch.history.decoding import decoded

SHARED = frozenset((CHECKPOINTS.name, CONTROL.name))
"""Topics whose keys are not runs."""
MAX_REASON = 500
LONGEST_KEY = 210  # characters: an id of 200, and what orders add to it
LATEST_MS = 4_102_444_800_000  # the year 2100: a wrong clock must not make the slider useless
NO_REASON = "no reason is given"


class Observer:
    """Decodes messages, and counts those that cannot be decoded."""

    def __init__(self, run_id: str | None = None) -> None:
        """Decode the messages of one run only, or of all."""
        self._key = None if run_id is None else run_id.encode()
        self.undecodable = 0

    def observe(self, messages: Iterable[Message]) -> list[Observed]:
        """Return the messages with their records. A message that cannot be decoded counts, without a record.

        Raises:
            RegistryError: The schema registry is unavailable for a while; none of the messages counts.
        """
        before = self.undecodable
        try:
            return [found for each in messages if (found := self._observed(each)) is not None]
        except RegistryError:
            self.undecodable = before
            raise

    def _observed(self, message: Message) -> Observed | None:
        key = (message.key or b"")[: 4 * LONGEST_KEY].decode("utf-8", "replace")[:LONGEST_KEY]
        time_ms = min(max(0, message.timestamp_ms), LATEST_MS)
        topic, partition = BY_NAME.get(message.topic), message.partition
        if topic is None:
            if message.header(NOTE_HEADER) is not None:
                return None  # a redrive's note about a dead letter
            reason = (message.header(REASON_HEADER) or NO_REASON)[:MAX_REASON]
            return Observed(time_ms, message.topic, None, key, partition, reason)
        wanted = self._key is None or topic.name in SHARED or message.key == self._key
        record = None
        if wanted:
            try:
                record = decoded(topic.name, message.value)
            except RegistryError as error:
                if error.temporary:
                    raise
                self.undecodable += 1
            except SchemaError:
                self.undecodable += 1
        return Observed(time_ms, topic.name, record, key, partition, raw=message.value)
