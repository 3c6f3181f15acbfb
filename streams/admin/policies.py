"""Lists the versions of a policy, and announces an operator's orders about them: pin, roll back, freeze."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, announcement, checksum, load, read_header
from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.client.compacted import key_text, newest_records
from tamiyo.schemas.client.partition_reader import OffsetRange, PartitionReader
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.errors import (
    BrokerError,
    CheckpointCorrupt,
    ConfigurationError,
    PolicyError,
    SchemaError,
    TamiyoError,
)
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.topics import CHECKPOINTS
from tamiyo.streams.admin.control import operator_name

DELIVERY_TIMEOUT_S = 10.0
ATTEMPTS = 5  # so many times in a row another operator would have to come in between

Edit = Callable[[PolicyCheckpoint | None], PolicyCheckpoint]
"""Makes an order of the one in force; None where there is none."""


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """One stored version of a policy."""

    version: int
    status: str
    """released, rolled_back or corrupt."""
    decides: bool
    """Whether decisions use it."""
    pinned: bool
    header: CheckpointHeader | None
    """None: it cannot be read."""

    def described(self) -> dict[str, Any]:
        """Return it as JSON values, without gates and learning metrics."""
        header = self.header
        return {
            "version": self.version,
            "status": self.status,
            "decides": self.decides,
            "pinned": self.pinned,
            "parent_version": header.parent_version if header else None,
            "time_ms": header.time_ms if header else None,
            "experiences": header.experiences if header else None,
            "updates": header.updates if header else None,
            "mean_reward": header.metrics.get("charts/mean_reward") if header else None,
        }


class PolicyVersions:
    """The versions of one policy in the store, and what is announced about them."""

    def __init__(self, name: str, url: str, kafka: KafkaSettings, names: TopicNames) -> None:
        """Read what is announced.

        Args:
            name: the policy's name.
            url: fsspec URL of the checkpoint store.
            kafka: the broker.
            names: the installation's topic names.

        Raises:
            BrokerError: the topic cannot be read.
            ConfigurationError: the store cannot be reached, or its file system is unknown.
        """
        self._name = name
        self._store = CheckpointStore(url)
        self._kafka = kafka
        self._topic = names.full(CHECKPOINTS.name)
        found = self._read()
        self.newest: PolicyCheckpoint | None = found.get(name)
        """The newest announcement."""
        self.orders: PolicyCheckpoint | None = found.get(policy_orders_key(name))
        """The operator's orders in force."""
        with self._reached():
            self._versions = self._store.versions()

    @property
    def pinned(self) -> int | None:
        """The version that is pinned."""
        return self.orders.version if self.orders is not None and self.orders.pinned else None

    @property
    def frozen(self) -> bool:
        """Whether the learner is frozen."""
        return _frozen(self.orders)

    def list(self, limit: int | None = None) -> list[PolicyVersion]:
        """Return the stored versions, newest first.

        Args:
            limit: at most this many.
        """
        headers = {
            version: self._header(version) for version in reversed(self._versions[-limit:] if limit else self._versions)
        }
        rolled_back = self._rolled_back(headers)
        decides = self._decides()
        return [
            PolicyVersion(
                version,
                "corrupt" if header is None else "rolled_back" if version in rolled_back else "released",
                version == decides,
                version == self.pinned,
                header,
            )
            for version, header in headers.items()
        ]

    def show(self, version: int) -> PolicyVersion:
        """Return one version, whose file is read and checked whole.

        Raises:
            PolicyError: there is no such version.
        """
        self._require(version)
        try:
            header = load(self._read_file(version))[1]
        except CheckpointCorrupt:
            header = None
        newest = self._header(self._versions[-1])
        rolled_back = self._rolled_back({self._versions[-1]: newest})
        status = "corrupt" if header is None else "rolled_back" if version in rolled_back else "released"
        return PolicyVersion(version, status, version == self._decides(), version == self.pinned, header)

    def pin(self, version: int, reason: str = "") -> PolicyCheckpoint:
        """Make decisions use a version until `unpin`.

        Raises:
            PolicyError: there is no such version, or it cannot be used.
            BrokerError: the order was not delivered.
        """
        self._require(version)
        data = self._read_file(version)
        header = load(data)[1]
        pinned = announcement(header, self._store.file_name(version), data)
        return self._order(lambda base: _with(pinned, pinned=True, frozen=_frozen(base)), reason)

    def unpin(self, reason: str = "") -> PolicyCheckpoint:
        """Make decisions follow the releases again.

        Raises:
            PolicyError: no version is pinned.
            BrokerError: the order was not delivered.
        """

        def without_pin(base: PolicyCheckpoint | None) -> PolicyCheckpoint:
            if base is None or not base.pinned:
                raise PolicyError(f"no version of policy {self._name!r} is pinned")
            return _with(base, pinned=False)

        return self._order(without_pin, reason)

    def freeze(self, frozen: bool, reason: str = "") -> PolicyCheckpoint:
        """Keep the learner from learning and releasing, or let it go on.

        Raises:
            PolicyError: nothing was released yet.
            BrokerError: the order was not delivered.
        """
        newest = self.orders or self._newest()
        return self._order(lambda base: _with(base or newest, pinned=_pinned(base), frozen=frozen), reason)

    def roll_back(self, to: int | None = None, reason: str = "") -> PolicyCheckpoint:
        """Announce that the newest version, and all after `to`, must not act any more.

        Args:
            to: version to return to; None: the one that was tested last, else the parent.
            reason: why, recorded with the announcement.

        Raises:
            PolicyError: nothing was released, or there is no earlier version to return to.
            BrokerError: the announcement was not delivered.
        """
        newest = self._newest()
        if newest.status == CheckpointStatus.ROLLED_BACK and to is None:
            raise PolicyError(
                f"version {newest.version} is rolled back already; give an earlier version with --to to go further back"
            )
        if to is None:
            to = newest.fallback_version if newest.fallback_version is not None else newest.parent_version
        if to is None:
            raise PolicyError(f"version {newest.version} is the first: there is no version to return to")
        if to >= newest.version:
            raise PolicyError(f"expected a version before {newest.version}, the newest, to return to, got {to}")
        self._require(to)
        if self.show(to).status == "rolled_back":
            raise PolicyError(f"version {to} was rolled back itself: choose another one to return to")
        data = self._read_file(to)
        load(data)
        changes = {
            "status": CheckpointStatus.ROLLED_BACK,
            "time_ms": time.time_ns() // 1_000_000,
            "fallback_version": to,
            "fallback_checksum": checksum(data),
            "issued_by": operator_name(),
            "reason": reason,
        }
        announcement = newest.model_copy(update=changes)
        between = self._between(self._name, self._publish(self._name, announcement))
        self.newest = announcement
        if between:
            raise PolicyError(
                f"version {newest.version} is rolled back, but version {between[-1].version} was announced at the same "
                "moment: see `tamiyo policy list`, and roll back again if that one must not act either"
            )
        return announcement

    def _order(self, edit: Edit, reason: str) -> PolicyCheckpoint:
        """Change the operator's orders: on top of another operator's, if one came in between."""
        base, key = self.orders, policy_orders_key(self._name)
        for _ in range(ATTEMPTS):
            changes = {"time_ms": time.time_ns() // 1_000_000, "issued_by": operator_name(), "reason": reason}
            order = _with(edit(base), status=CheckpointStatus.RELEASED, **changes)
            between = self._between(key, self._publish(key, order))
            self.orders = order
            if not between:
                return order
            base = between[-1]
        raise BrokerError(
            f"the orders about policy {self._name!r} were changed by others {ATTEMPTS} times at the same moment: see "
            "`tamiyo policy list`, and give the command again"
        )

    def _publish(self, key: str, announcement: PolicyCheckpoint) -> tuple[int, int]:
        """Publish an announcement; return its partition and offset."""
        places: deque[tuple[int, int]] = deque()
        producer = AwaitedProducer(self._kafka, timeout_s=DELIVERY_TIMEOUT_S)
        producer.produce(
            self._topic,
            encode(announcement),
            key,
            on_delivery=lambda message: places.append((message.partition() or 0, message.offset() or 0)),
        )
        producer.flush()
        return places[-1]

    def _between(self, key: str, place: tuple[int, int]) -> Sequence[PolicyCheckpoint]:
        """Return what others announced under a key after this object read the topic, and before its own message."""
        partition, offset = place
        found: deque[PolicyCheckpoint] = deque()
        with PartitionReader(self._kafka, "tamiyo-policy") as reader:
            first = max(self._read_to.get(partition, 0), reader.bounds(self._topic, partition)[0])
            for message in reader.read([OffsetRange(self._topic, partition, first, offset)]):
                if message.value() is None or key_text(message.key()) != key:
                    continue
                with suppress(SchemaError):  # the learner reports what cannot be decoded
                    found.append(decode(message.value(), PolicyCheckpoint))
        self._read_to[partition] = offset + 1
        return found

    def _read(self) -> dict[str, PolicyCheckpoint]:
        """Return the newest announcement under each key; the learner reports what cannot be decoded."""
        with PartitionReader(self._kafka, "tamiyo-policy") as reader:
            self._read_to = {each.partition: each.end for each in reader.ranges(self._topic)}
            return newest_records(reader, self._topic, PolicyCheckpoint)

    def _newest(self) -> PolicyCheckpoint:
        if self.newest is None:
            raise PolicyError(f"no version of policy {self._name!r} was released yet: is the learner running?")
        return self.newest

    def _require(self, version: int) -> None:
        if version in self._versions:
            return
        if not self._versions:
            raise PolicyError(f"{self._store.url} holds no version of policy {self._name!r}: is the learner running?")
        raise PolicyError(
            f"there is no version {version} of policy {self._name!r} in {self._store.url}; `tamiyo policy list` has "
            f"those from {self._versions[0]} to {self._versions[-1]}"
        )

    def _header(self, version: int) -> CheckpointHeader | None:
        with self._reached():
            try:
                return read_header(self._store, version)
            except CheckpointCorrupt:
                return None

    def _read_file(self, version: int) -> bytes:
        with self._reached():
            return self._store.read(self._store.file_name(version))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise ConfigurationError if the store cannot be reached."""
        try:
            yield
        except TamiyoError:
            raise
        except Exception as error:  # each fsspec file system raises its own errors
            raise ConfigurationError(f"the checkpoint store {self._store.url} cannot be reached: {error}") from error

    def _decides(self) -> int | None:
        """Return the version that decisions use outside a canary."""
        if self.pinned is not None or self.newest is None:
            return self.pinned
        if self.newest.status == CheckpointStatus.RELEASED:
            return self.newest.version
        fallback = self.newest.fallback_version
        return fallback if fallback is not None else self.newest.parent_version

    def _rolled_back(self, headers: Mapping[int, CheckpointHeader | None]) -> set[int]:
        """Return the versions that were rolled back, as the newest checkpoint and the newest announcement record it."""
        recorded = next(
            (header.release.rolled_back for _, header in sorted(headers.items(), reverse=True) if header), ()
        )
        found = set(recorded)
        newest = self.newest
        if newest is not None and newest.status == CheckpointStatus.ROLLED_BACK:
            first = newest.version if newest.fallback_version is None else newest.fallback_version + 1
            found.update(range(first, newest.version), [newest.version])
        return found


def _with(announcement: PolicyCheckpoint, **changes: Any) -> PolicyCheckpoint:
    return announcement.model_copy(update=changes)


def _pinned(orders: PolicyCheckpoint | None) -> bool:
    return orders is not None and orders.pinned


def _frozen(orders: PolicyCheckpoint | None) -> bool:
    return orders is not None and orders.frozen
