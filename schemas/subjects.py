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
from tamiyo.schemas.registry import Registry
from tamiyo.schemas.topics import CATALOGUE

UNUSABLE_S = 60.0  # a bad id is asked for again after this; a producer registers before it writes
MAX_REMEMBERED = 10_000
# Hostile ids must not become requests: so many unknown ones in a row, and one more every QUESTION_S.
QUESTIONS, QUESTION_S = 20, 5.0
REFUSED_S, AWAY_S = 10.0, 1.0  # what was refused, or not answered, is not asked for with every record

_TOPICS = {topic.record: topic.name for topic in CATALOGUE}
_OWN = object()  # in place of a schema: it is ours, so nothing need be resolved


def subject(record: type[Record], names: TopicNames) -> str:
    """Return the subject of `record`'s topic."""
    return f"{names.full(_TOPICS[record])}-value"


def schema_text(record: type[Record]) -> str:
    """Return what is registered for `record`."""
    return json.dumps(avro_schema(record))


class Subjects:
    """Ids and schemas of the catalogue's records, each asked for when first needed. Thread-safe."""

    def __init__(self, registry: Registry, names: TopicNames, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._names = names
        self._clock = clock
        self._lock = threading.Lock()
        self._headers: dict[type[Record], bytes] = {}
        self._refusals: dict[type[Record], tuple[float, RegistryError]] = {}
        self._writers: dict[tuple[type[Record], int], Any] = {}
        self._unusable: OrderedDict[tuple[type[Record], int], tuple[float, str]] = OrderedDict()
        self._questions = float(QUESTIONS)
        self._asked = clock()

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
            DecodeError: the registry has no such id, or its schema is not one of `record`.
            RegistryError: the registry would have to be asked and does not answer: the bytes may yet be good.
        """
        found = self._writers.get((record, schema_id))
        if found is None:
            with self._lock:
                found = self._search(record, schema_id)
        return None if found is _OWN else found

    def _look_up(self, record: type[Record]) -> bytes:
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
                        f"{self._registry.url} has no such {record.__name__} under {name}: "
                        "`tamiyo schemas register` registers it"
                    )
                header = struct.pack(">bI", 0, schema_id)
            except struct.error:
                raise RegistryError(f"{self._registry.url} gave {name} the id {schema_id}, which is no id") from None
            except RegistryError as error:
                self._refusals[record] = (self._clock() + (AWAY_S if error.temporary else REFUSED_S), error)
                raise
            self._writers[record, schema_id] = _OWN
            self._headers[record] = header
            return header

    def _search(self, record: type[Record], schema_id: int) -> Any:
        key, now = (record, schema_id), self._clock()
        if key in self._writers:  # another thread was faster
            return self._writers[key]
        until, problem = self._unusable.get(key, (0.0, ""))
        if now >= until:
            self._questions = min(QUESTIONS, self._questions + (now - self._asked) / QUESTION_S)
            self._asked = now
            if self._questions < 1:
                raise DecodeError(f"schema {schema_id} is unknown, and so many were that the registry is spared")
            schema = self._registry.schema(schema_id)
            self._questions -= 1  # only now: a registry that does not answer says nothing about ids
            found, problem = _usable(schema, record)
            if found is not None:
                self._writers[key] = found
                return found
            self._unusable[key] = (now + UNUSABLE_S, problem)
            self._unusable.move_to_end(key)
            if len(self._unusable) > MAX_REMEMBERED:
                self._unusable.popitem(last=False)
        raise DecodeError(f"expected a {record.__name__}, but of schema {schema_id} {problem}")


def _usable(schema: str | None, record: type[Record]) -> tuple[Any | None, str]:
    """Return a schema parsed (`_OWN` where it is the record's), or None and why it cannot be used."""
    if schema is None:
        return None, "the registry knows nothing"
    try:
        parsed = fastavro.parse_schema(json.loads(schema))
    except Exception as error:  # fastavro raises its own errors, and KeyError or TypeError for what is no schema
        return None, f"the registry's text is no Avro schema: {type(error).__name__}: {error}"
    own = fastavro.parse_schema(avro_schema(record))
    name = parsed.get("name") if isinstance(parsed, dict) else None
    if name != own["name"]:
        return None, f"the registry says that it is {name or 'no record'}"
    return (_OWN if parsed == own else parsed), ""
