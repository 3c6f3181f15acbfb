"""Reads and changes the standing orders of operators on the control topic.

A change reads the order in force, changes one thing of it, and publishes the whole. Kafka has no conditional write, so
a change reads once more after it has published: if another operator published in between, the change is made again on
top of that order, and neither is lost.
"""

import difflib
import getpass
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from confluent_kafka import Message

from tamiyo.schemas.adaptation import ALL_RUNS, ControlCommand
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import NewestByKey, copy_of, key_text
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.codec import decode, encode, validate
from tamiyo.schemas.errors import BrokerError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import CONTROL, TOPOLOGY

DELIVERY_TIMEOUT_S = 10.0
ATTEMPTS = 5  # so many times in a row another operator would have to come in between


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What an order forbids; the rest of a ControlCommand is who gave it, when and why."""

    paused: bool = False
    dry_run: bool = False
    protected: tuple[str, ...] = ()

    @classmethod
    def of(cls, order: ControlCommand | None) -> "Restrictions":
        """Return those of an order; none where there is no order."""
        if order is None:
            return cls()
        return cls(order.paused, order.dry_run, tuple(dict.fromkeys(order.protected_layers)))


Edit = Callable[[Restrictions], Restrictions | None]
"""Changes what an order forbids; None removes the order."""


def paused(now: bool) -> Edit:
    """Return the edit that pauses or resumes."""
    return lambda old: replace(old, paused=now)


def dry_run(now: bool) -> Edit:
    """Return the edit that begins or ends a dry run."""
    return lambda old: replace(old, dry_run=now)


def protected(add: Collection[str] = (), remove: Collection[str] = ()) -> Edit:
    """Return the edit that protects layers in addition, and no longer protects others."""
    return lambda old: replace(
        old, protected=tuple(each for each in dict.fromkeys((*old.protected, *add)) if each not in remove)
    )


def cleared(_: Restrictions) -> None:
    """Remove the order (an Edit)."""


@dataclass(frozen=True, slots=True)
class OrderChange:
    """What a change did."""

    before: ControlCommand | None
    after: ControlCommand | None
    """In force now; None: there is no order."""
    published: bool
    """False: the order was so already."""
    notes: tuple[str, ...] = ()
    """What other operators did meanwhile."""
    overruled: bool = False
    """Whether another operator's order has undone the change."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One message of the control topic."""

    partition: int
    offset: int
    order: ControlCommand | None


class ControlTopic:
    """The orders on the control topic. A context manager.

    Every method raises BrokerError where the topic cannot be read or written, or is missing.
    """

    def __init__(self, kafka: KafkaSettings, names: TopicNames) -> None:
        """Read the orders in force.

        Args:
            kafka: the broker.
            names: the installation's topic names.
        """
        self._kafka = kafka
        self._names = names
        self._topic = names.full(CONTROL.name)
        self._reader = PartitionReader(kafka, "tamiyo-control")
        self._read_to: dict[int, int] = {}
        self._newest: NewestByKey[str, ControlCommand] = NewestByKey()
        """By addressee."""
        self._newest_ms: dict[str, int] = {}
        self.unreadable: list[str] = []
        """Places of messages that are no orders; stages and hosts ignore them too."""
        try:
            self._refresh()
        except BaseException:
            self._reader.close()
            raise

    def __enter__(self) -> "ControlTopic":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def orders(self) -> dict[str, ControlCommand]:
        """The orders in force by addressee: a run_id, or * for all runs."""
        return dict(sorted(self._newest.items()))

    def change(self, addressee: str, edit: Edit, reason: str = "") -> OrderChange:
        """Change the order for a run, or for all runs, and keep the rest of it.

        Args:
            addressee: a run_id, or * for all runs.
            edit: what to change.
            reason: why, recorded with the order; empty: the present order's reason stays while it forbids anything.

        Raises:
            RecordError: the order would break the contract, for example by a run_id with spaces.
            BrokerError: the order was not delivered, or other operators kept changing it.
        """
        first = base = self.orders.get(addressee)
        notes: list[str] = []
        for _ in range(ATTEMPTS):
            after = self._edited(addressee, base, edit, reason)
            if _same(self.orders.get(addressee), after, reason):
                return OrderChange(first, self.orders.get(addressee), bool(notes), tuple(notes))
            written = self._publish(addressee, after)
            since = [each for each in self._refresh().get(addressee, []) if each.partition == written[0]]
            overtaken = [each for each in since if each.offset < written[1]]
            later = [each for each in since if each.offset > written[1]]
            notes += [f"{_author(each)} changed this order at the same time" for each in (*overtaken, *later)]
            if later:
                standing = self.orders.get(addressee)
                wanted = edit(Restrictions.of(standing))
                undone = Restrictions.of(standing) != (wanted or Restrictions())
                return OrderChange(first, standing, True, tuple(notes), overruled=undone)
            if not overtaken:
                return OrderChange(first, after, True, tuple(notes))
            base = overtaken[-1].order
        raise BrokerError(
            f"the order for {addressee} was changed by others {ATTEMPTS} times at the same moment; "
            f"see `tamiyo control show`, and give the command again"
        )

    def _edited(self, addressee: str, base: ControlCommand | None, edit: Edit, reason: str) -> ControlCommand | None:
        wanted = edit(Restrictions.of(base))
        if wanted is None:
            return None
        kept = base.reason if base is not None and wanted != Restrictions() else ""
        values = {
            "run_id": addressee,
            "time_ms": self._next_ms(addressee),
            "paused": wanted.paused,
            "dry_run": wanted.dry_run,
            "protected_layers": list(wanted.protected),
            "issued_by": operator_name(),
            "reason": reason or kept,
        }
        return validate(values, ControlCommand)

    def _next_ms(self, addressee: str) -> int:
        # Hosts ignore an order older than the one they have, and replays find orders by their times.
        return max(time.time_ns() // 1_000_000, self._newest_ms.get(addressee, 0) + 1)

    def _publish(self, addressee: str, order: ControlCommand | None) -> tuple[int, int]:
        time_ms = order.time_ms if order is not None else self._next_ms(addressee)
        return publish_order(addressee, order, self._kafka, self._names, time_ms)

    def _refresh(self) -> dict[str, list[_Entry]]:
        """Read what is new on the topic; return it by addressee, each in order."""
        ranges = self._reader.ranges(self._topic)
        if not ranges:
            raise BrokerError(f"the broker has no topic {self._topic}; `tamiyo topics create` creates it")
        found: dict[str, list[_Entry]] = {}
        new = [replace(each, start=max(each.start, self._read_to.get(each.partition, 0))) for each in ranges]
        for message in self._reader.read(new):
            key = key_text(message.key())
            try:
                value = message.value()
                order = None if value is None else decode(value, ControlCommand)
            except SchemaError:
                self.unreadable.append(f"{self._topic}/{message.partition()}/{message.offset()}")
                continue
            found.setdefault(key, []).append(_Entry(message.partition() or 0, message.offset() or 0, order))
            given_ms = order.time_ms if order is not None else 0
            self._newest_ms[key] = max(self._newest_ms.get(key, 0), message.timestamp()[1], given_ms)
            self._newest.take(key, copy_of(message, order))
        self._read_to = {each.partition: each.end for each in ranges}
        return found


def publish_order(
    addressee: str, order: ControlCommand | None, kafka: KafkaSettings, names: TopicNames, time_ms: int = 0
) -> tuple[int, int]:
    """Publish an order whole, whatever is in force, and wait for its delivery.

    Args:
        addressee: the run_id, or * for all runs.
        order: None removes the order.
        kafka: the broker.
        names: the installation's topic names.
        time_ms: time of the message; 0: now.

    Returns:
        The partition and offset of the message.

    Raises:
        BrokerError: it was not delivered.
    """
    places: list[tuple[int, int]] = []

    def delivered(message: Message) -> None:
        places.append((message.partition() or 0, message.offset() or 0))

    producer = AwaitedProducer(kafka, timeout_s=DELIVERY_TIMEOUT_S)
    value = None if order is None else encode(order)
    producer.produce(names.full(CONTROL.name), value, addressee, timestamp_ms=time_ms, on_delivery=delivered)
    producer.flush()
    return places[-1]


def operator_name() -> str:
    """Return who gives an order: the user's name, or the number where the system knows no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@dataclass(frozen=True, slots=True)
class KnownRuns:
    """The runs that have published their topology, and the layers of some."""

    runs: frozenset[str]
    layers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By run."""

    def warnings(self, addressee: str, layers: Collection[str] = ()) -> list[str]:
        """Return what an order names that is not known; it may be a typing error, or a run that is yet to start.

        Args:
            addressee: the run_id, or * for all runs.
            layers: the layers that are to be protected.
        """
        if addressee != ALL_RUNS and addressee not in self.runs:
            hint = _nearest(addressee, self.runs)
            return [f"no run {addressee!r} has published its topology yet{hint}; the order waits for it"]
        known = frozenset[str]().union(*self.layers.values())
        whose = "no known run has" if addressee == ALL_RUNS else f"run {addressee!r} does not have"
        return [f"{whose} a layer {each!r}{_nearest(each, known)}" for each in layers if each not in known]


def known_runs(addressee: str, kafka: KafkaSettings, names: TopicNames, *, layers: bool) -> KnownRuns:
    """Read the topology topic.

    Args:
        addressee: the run_id whose layers are wanted, or * for all.
        kafka: the broker.
        names: the installation's topic names.
        layers: whether layers are wanted.

    Raises:
        BrokerError: the topic cannot be read.
    """
    newest: NewestByKey[str, bytes] = NewestByKey()
    with PartitionReader(kafka, "tamiyo-control") as reader:
        for message in reader.read(reader.ranges(names.full(TOPOLOGY.name))):
            newest.take(key_text(message.key()), copy_of(message, message.value()))
    values = dict(newest.items())
    wanted = (values if addressee == ALL_RUNS else values.keys() & {addressee}) if layers else ()
    found: dict[str, frozenset[str]] = {}
    for run_id in wanted:
        try:
            found[run_id] = frozenset(each.layer_id for each in decode(values[run_id], ModelTopology).layers)
        except SchemaError:
            continue  # the graphs stage reports it
    return KnownRuns(frozenset(values), found)


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _same(standing: ControlCommand | None, wanted: ControlCommand | None, reason: str) -> bool:
    if standing is None or wanted is None:
        return standing is wanted or (standing is None and Restrictions.of(wanted) == Restrictions())
    return Restrictions.of(standing) == Restrictions.of(wanted) and standing.reason == wanted.reason


def _author(entry: _Entry) -> str:
    return (entry.order.issued_by if entry.order is not None else "") or "another operator"
