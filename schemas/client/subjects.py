"""A cache of the catalogue's subjects in a schema registry: the ids to write, and the schemas of other ids.

A subject is `<topic>-value`, with the installation's prefix before the topic (Confluent's TopicNameStrategy). Every id
is requested once, so a later outage of the registry has no effect until a record arrives with an unknown schema.
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
from tamiyo.schemas.client.registry import Registry
from tamiyo.schemas.errors import DecodeError, RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.record import Record
from tamiyo.schemas.resolution import base_types
from tamiyo.schemas.topics import CATALOGUE

BAD_ID_S = 60.0  # until a bad id is requested again; a producer registers its schema before it writes
MAX_BAD_IDS = 10_000  # kept in the cache
# Hostile ids must not flood the registry: so many requests at once for unknown ids, and one more every REQUEST_S.
REQUESTS, REQUEST_S = 20, 5.0
REFUSED_S, UNAVAILABLE_S = 10.0, 1.0  # until a refused or failed request is repeated, instead of with every record

_TOPICS = {topic.record: topic.name for topic in CATALOGUE}
_OWN = object()  # in place of a schema: the record's own, so nothing needs resolving


def subject(record: type[Record], names: TopicNames) -> str:
    """Return the subject of `record`'s topic."""
    return f"{names.full(_TOPICS[record])}-value"


def schema_text(record: type[Record]) -> str:
    """Return the schema to register for `record`, as JSON text."""
    return json.dumps(avro_schema(record))


class Subjects:
    """Ids and schemas of the catalogue's records, each requested when it is first needed. Thread-safe."""

    def __init__(self, registry: Registry, names: TopicNames, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make an empty cache.

        Args:
            registry: Where subjects are looked up.
            names: The installation's prefix.
            clock: Returns seconds.
        """
        self._registry = registry
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._headers: dict[type[Record], bytes] = {}
        self._refusals: dict[type[Record], tuple[float, RegistryError]] = {}
        self._writers: dict[tuple[type[Record], int], Any] = {}
        self._bad_ids: OrderedDict[tuple[type[Record], int], tuple[float, str]] = OrderedDict()
        self._requests = float(REQUESTS)
        self._refilled = clock()

    def header(self, record: type[Record]) -> bytes:
        """Return the first five bytes of an encoded `record`: 0 and the schema's id.

        Raises:
            RegistryError: The registry is unavailable, or the schema is not registered.
        """
        known = self._headers.get(record)
        return known if known is not None else self._request_id(record)

    def prepare(self, records: Iterable[type[Record]] = tuple(_TOPICS)) -> None:
        """Request the ids of `records` now, so that a later outage of the registry has no effect on them."""
        for record in records:
            self.header(record)

    def writer(self, record: type[Record], schema_id: int) -> Any | None:
        """Return the parsed schema of an id.

        Args:
            record: The type that the topic carries.
            schema_id: From a message's framing.

        Returns:
            The writer's schema, or None if it is `record`'s own.

        Raises:
            DecodeError: The registry has no such id, or its schema is not one of `record`.
            RegistryError: The schema is unknown and the registry is unavailable: the message may still be valid.
        """
        found = self._writers.get((record, schema_id))
        if found is None:
            with self._lock:
                found = self._search(record, schema_id)
        return None if found is _OWN else found

    def _request_id(self, record: type[Record]) -> bytes:
        with self._lock:
            if record in self._headers:
                return self._headers[record]
            until, refusal = self._refusals.get(record, (0.0, None))
            if refusal is not None and self._clock() < until:
                raise RegistryError(str(refusal), temporary=refusal.temporary) from refusal
            name = subject(record, self._names)
            try:
                schema_id = self._registry.find(name, schema_text(record))
                if schema_id is None:
                    raise RegistryError(
                        f"expected the schema of {record.__name__} under {name} at {self._registry.url}: run "
                        "`tamiyo schemas register`"
                    )
                header = struct.pack(">bI", 0, schema_id)
            except struct.error:
                raise RegistryError(
                    f"expected an id of 32 bits for {name} from {self._registry.url}, got {schema_id}"
                ) from None
            except RegistryError as error:
                self._refusals[record] = (self._clock() + (UNAVAILABLE_S if error.temporary else REFUSED_S), error)
                raise
            self._writers[record, schema_id] = _OWN
            self._headers[record] = header
            return header

    def _search(self, record: type[Record], schema_id: int) -> Any:
        key, now = (record, schema_id), self._clock()
        if key in self._writers:  # another thread has requested it meanwhile
            return self._writers[key]
        until, problem = self._bad_ids.get(key, (0.0, ""))
        if now >= until:
            self._requests = min(REQUESTS, self._requests + (now - self._refilled) / REQUEST_S)
            self._refilled = now
            if self._requests < 1:
                raise DecodeError(
                    f"schema {schema_id} is unknown, and too many unknown schemas were requested before it: "
                    "check who writes to the topic"
                )
            schema = self._registry.schema(schema_id)
            self._requests -= 1  # only now: an unavailable registry does not count
            found, problem = _parse(schema, record)
            if found is not None:
                self._writers[key] = found
                return found
            self._bad_ids[key] = (now + BAD_ID_S, problem)
            self._bad_ids.move_to_end(key)
            if len(self._bad_ids) > MAX_BAD_IDS:
                self._bad_ids.popitem(last=False)
        raise DecodeError(f"expected a {record.__name__}, but schema {schema_id} {problem}")


def _parse(schema: str | None, record: type[Record]) -> tuple[Any | None, str]:
    """Return the parsed schema (`_OWN` if it is the record's own), or None and why it cannot be used."""
    if schema is None:
        return None, "is not in the registry"
    try:
        parsed = fastavro.parse_schema(base_types(record, json.loads(schema)))
    except DecodeError as error:
        return None, str(error)
    except Exception as error:  # fastavro raises its own errors, and KeyError or TypeError for other JSON
        return None, f"is not an Avro schema: {type(error).__name__}: {error}"
    own = fastavro.parse_schema(avro_schema(record))
    name = parsed.get("name") if isinstance(parsed, dict) else None
    if name != own["name"]:
        return None, f"is {f'a record {name}' if name else 'not a record'}"
    return (_OWN if parsed == own else parsed), ""
