"""The catalogue's subjects in a schema registry, remembered: which id we write, and what other ids were written with.

A subject is `<topic>-value`, the topic with the installation's prefix (Confluent's TopicNameStrategy). Ids are asked
for once, so a registry that goes away later costs nothing until a schema comes that was never seen.
"""

import json
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import fastavro

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.errors import DecodeError, RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.registry import Registry, Version
from tamiyo.schemas.topics import CATALOGUE

UNKNOWN_S = 60.0  # an id that the subject lacks is not asked for again; a producer registers before it writes
MAX_UNKNOWN = 10_000
SEARCHES = 20  # for unknown ids in a row, and one more every SEARCH_S: hostile ids must not become requests
SEARCH_S = 5.0
REFUSED_S, AWAY_S = 10.0, 1.0  # what was refused, or not answered, is not asked for with every record


def subject(record: type[Record], names: TopicNames) -> str:
    """Return the subject of `record`'s topic."""
    return f"{names.full(_TOPICS[record])}-value"


def schema_text(record: type[Record]) -> str:
    """Return what is registered for `record`."""
    return json.dumps(avro_schema(record))


_TOPICS = {topic.record: topic.name for topic in CATALOGUE}
_OWN = object()  # in place of a schema: it is ours, so nothing need be resolved


class Subjects:
    """Ids and schemas of the catalogue's subjects, each asked for when first needed. Thread-safe."""

    def __init__(self, registry: Registry, names: TopicNames, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._headers: dict[type[Record], bytes] = {}
        self._own: dict[type[Record], int] = {}
        self._refusals: dict[type[Record], tuple[float, RegistryError]] = {}
        self._writers: dict[type[Record], dict[int, Any]] = {}
        self._versions: dict[type[Record], set[int]] = {}
        self._unknown: OrderedDict[tuple[type[Record], int], float] = OrderedDict()
        self._searches = float(SEARCHES)
        self._searched = clock()

    def header(self, record: type[Record]) -> bytes:
        """Return the five bytes that an encoded `record` begins with: 0, and the schema's id.

        Raises RegistryError where the registry does not answer, or the schema is not registered.
        """
        known = self._headers.get(record)
        return known if known is not None else self._look_up(record)

    def prepare(self, records: Iterable[type[Record]] = tuple(_TOPICS)) -> None:
        """Ask for the ids of `records` now, so that a registry that goes away later is not missed."""
        for record in records:
            self.header(record)

    def writer(self, record: type[Record], schema_id: int) -> Any | None:
        """Return the parsed schema that id stands for, None where it is `record`'s own.

        Raises:
            DecodeError: the subject has no such id, or its schema cannot be used.
            RegistryError: the registry would have to be asked and does not answer: the bytes may yet be good.
        """
        if schema_id == self._own.get(record):
            return None
        found = self._writers.get(record, {}).get(schema_id)
        if found is None:
            found = self._search(record, schema_id)
        if isinstance(found, str):
            raise DecodeError(f"schema {schema_id} of {subject(record, self._names)} cannot be used: {found}")
        return None if found is _OWN else found

    def _look_up(self, record: type[Record]) -> bytes:
        with self._lock:
            if record in self._headers:
                return self._headers[record]
            until, refusal = self._refusals.get(record, (0.0, None))
            if refusal is not None and self._clock() < until:
                raise refusal
            name = subject(record, self._names)
            try:
                schema_id = self._registry.find(name, schema_text(record))
                if schema_id is None:
                    raise RegistryError(
                        f"{self._registry.url} has no such {record.__name__} under {name}: "
                        "`tamiyo schemas register` registers it"
                    )
                header = struct.pack(">bI", 0, schema_id)
            except struct.error:
                raise RegistryError(f"{self._registry.url} gave {name} the id {schema_id}, which is no id") from None
            except RegistryError as error:
                self._refusals[record] = (self._clock() + (AWAY_S if error.temporary else REFUSED_S), error)
                raise
            self._own[record] = schema_id
            self._headers[record] = header
            return header

    def _search(self, record: type[Record], schema_id: int) -> Any:
        name = subject(record, self._names)
        with self._lock:
            found = self._writers.setdefault(record, {}).get(schema_id)
            if found is not None:
                return found
            key, now = (record, schema_id), self._clock()
            if self._unknown.get(key, 0.0) > now:
                raise DecodeError(f"subject {name} has no schema {schema_id}")
            self._searches = min(SEARCHES, self._searches + (now - self._searched) / SEARCH_S)
            self._searched = now
            if self._searches < 1:
                raise DecodeError(f"schema {schema_id} is unknown, and so many were that {name} is not searched for it")
            found = self._read_versions(record, name, schema_id)
            self._searches -= 1  # only now: what the registry did not answer says nothing about ids
            if found is None:
                self._unknown[key] = now + UNKNOWN_S
                self._unknown.move_to_end(key)
                if len(self._unknown) > MAX_UNKNOWN:
                    self._unknown.popitem(last=False)
                raise DecodeError(f"subject {name} has no schema {schema_id}")
            return found

    def _read_versions(self, record: type[Record], name: str, schema_id: int) -> Any | None:
        """Read versions not read before, the newest first, until one has the id; return its schema."""
        seen = self._versions.setdefault(record, set())
        for number in reversed(self._registry.version_numbers(name)):
            if number in seen:
                continue
            version = self._registry.version(name, number)
            seen.add(number)
            self._writers[record][version.schema_id] = _usable(version, record)
            if version.schema_id == schema_id:
                return self._writers[record][schema_id]
        return None


def _usable(version: Version, record: type[Record]) -> Any:
    """Return a version's schema parsed, `_OWN` where it is ours, or a text that says why it cannot be used."""
    if version.references:
        return "it needs other schemas"
    try:
        parsed = fastavro.parse_schema(json.loads(version.schema))
    except Exception as error:  # fastavro raises its own errors, and KeyError or TypeError for what is no schema
        return f"{type(error).__name__}: {error}"
    return _OWN if parsed == fastavro.parse_schema(avro_schema(record)) else parsed
