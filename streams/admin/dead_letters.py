"""Dead letters: what stages set aside, read back with the reason, and what became of each since.

Everything that is known lies on the dead-letter topics themselves. `tamiyo dlq redrive`
(`streams/admin/redrive.py`) adds notes beside the letters: a claim before letters go back, a receipt afterwards.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from tamiyo.schemas.connection import of_the_group
from tamiyo.schemas.errors import BrokerError, ConfigurationError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, Topic
from tamiyo.streams.admin.broker_wait import wait_for_broker
from tamiyo.streams.admin.dead_letter import DeadLetterPartition

REQUEST_TIMEOUT_S = 20.0
# A partition that is new, or changes its leader, has none for a moment.
PASSING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError._TRANSPORT)
POLL_S = 0.2
READ_PATIENCE_S = 30.0  # without a message of a partition that has more


class DeadLetters:
    """Reads the dead letters of topics. A context manager.

    Raises BrokerError where the broker does not answer or a topic is missing.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        wait_for_broker(kafka)
        self.names = names
        self._consumer = Consumer(
            kafka.librdkafka(log_level=0, **{"group.id": names.full("tamiyo-dlq"), "enable.auto.commit": False})
        )

    def __enter__(self) -> "DeadLetters":
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def boxes(
        self, topics: Sequence[Topic] = CATALOGUE, tell: Callable[[str], None] = lambda _: None
    ) -> list[DeadLetterPartition]:
        """Return everything that lies there now, a box a partition that holds anything; `tell` hears of progress."""
        found: list[DeadLetterPartition] = []
        for topic in topics:
            boxes = [
                DeadLetterPartition(topic, number) for number in self._partitions(self.names.full(topic.dead_letters))
            ]
            for box in boxes:
                self.read_on(box)
            found += [box for box in boxes if box.letters]
            count = sum(len(box.letters) for box in boxes)
            if count:
                tell(f"{topic.dead_letters}: {count:,} letters read")
        return found

    def read_on(self, box: DeadLetterPartition) -> None:
        """Read what a box has got since it was read last."""
        for message in self.messages(self.names.full(box.topic.dead_letters), box.partition, box.next):
            box.take(message)

    def messages(self, full: str, partition: int, first: int) -> Iterator[Message]:
        """Yield the messages of a partition from an offset to where it ends now."""
        begin, end = self.marks(full, partition)
        if max(first, begin) >= end:
            return
        start = max(first, begin)
        self._consumer.assign([TopicPartition(full, partition, start if start > begin else OFFSET_BEGINNING)])
        deadline = time.monotonic() + READ_PATIENCE_S
        try:
            while True:
                message = self._consumer.poll(POLL_S)
                if message is not None and message.error() is None:
                    deadline = time.monotonic() + READ_PATIENCE_S
                    if message.offset() < end:
                        yield message
                    if message.offset() + 1 >= end:
                        return
                elif message is not None and not of_the_group(message.error()):
                    if message.error().code() != KafkaError._PARTITION_EOF:
                        raise BrokerError(f"reading {full}: {message.error().str()}")
                elif self._consumer.position([TopicPartition(full, partition)])[0].offset >= end:
                    return  # the last offsets are of a transaction, or compacted
                elif time.monotonic() > deadline:
                    raise BrokerError(f"{full}/{partition} could not be read to its end, offset {end}")
        finally:
            self._consumer.unassign()

    def marks(self, full: str, partition: int) -> tuple[int, int]:
        """Return the first offset of a partition, and the one that comes next."""
        deadline = time.monotonic() + REQUEST_TIMEOUT_S
        while True:
            try:
                place = TopicPartition(full, partition)
                low, high = self._consumer.get_watermark_offsets(place, timeout=REQUEST_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > deadline:
                    raise BrokerError(f"the ends of {full} cannot be read: {error.args[0].str()}") from error
                time.sleep(POLL_S)
            else:
                return int(low), int(high)

    def _partitions(self, full: str) -> list[int]:
        try:
            # All topics: to name one that is missing would make it, on a broker that makes topics on demand.
            topic = self._consumer.list_topics(timeout=REQUEST_TIMEOUT_S).topics.get(full)
        except KafkaException as error:
            raise BrokerError(f"the broker does not answer: {error.args[0].str()}") from error
        return sorted(topic.partitions) if topic is not None else []


def chosen(names: TopicNames, wanted: Sequence[str]) -> list[Topic]:
    """Return the topics of these names, with or without `.dlq` and the prefix; all for none.

    Raises ConfigurationError for one that the catalogue does not have.
    """
    found = []
    for name in wanted:
        bare = names.bare(name).removesuffix(".dlq")
        if bare not in BY_NAME:
            raise ConfigurationError(f"no topic {name!r} in the catalogue; `tamiyo topics list` names them")
        found.append(BY_NAME[bare])
    return found or list(CATALOGUE)
