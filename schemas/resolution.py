"""The schema with which a record of another version is read.

Avro's resolution leaves out the fields that only the writer has. Those that a record still accepts (`released_fields`)
must be read nevertheless, so they are added to the reader's schema as the writer has them.
"""

from collections.abc import Iterator
from typing import Any

import fastavro

from tamiyo.schemas.avro_schema import NAMESPACE, avro_schema
from tamiyo.schemas.record import Record

_resolved: dict[tuple[type[Record], int], tuple[Any, Any]] = {}
"""By record and identity of the writer's schema: the writer's schema, kept so that its identity is not reused, and the
reader's."""


def resolving_schema(record: type[Record], writer: Any) -> Any:
    """Return the parsed schema with which to read a `record` of another version.

    Args:
        record: The record to read.
        writer: The schema it was written with, parsed.
    """
    key = record, id(writer)
    if key not in _resolved:
        schema = avro_schema(record)
        definitions = dict(_definitions(writer))
        for name, own in list(_definitions(schema)):
            theirs = definitions.get(name, {"fields": []})
            known = {field["name"] for field in own["fields"]}
            accepted = _released_fields(name)
            own["fields"] += [
                each for each in theirs["fields"] if each["name"] in accepted and each["name"] not in known
            ]
        _resolved[key] = writer, fastavro.parse_schema(schema)
    return _resolved[key][1]


def _released_fields(name: str) -> frozenset[str]:
    for record in _all_records(Record):
        if f"{NAMESPACE}.{record.__name__}" == name:
            return record.released_fields
    return frozenset()


def _all_records(record: type[Record]) -> Iterator[type[Record]]:
    for each in record.__subclasses__():
        yield each
        yield from _all_records(each)


def _definitions(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every record that a schema defines, by its full name, in the order of their definitions."""
    if isinstance(schema, list):
        for each in schema:
            yield from _definitions(each)
    elif isinstance(schema, dict):
        if schema.get("type") == "record":
            name = schema["name"]
            yield (name if "." in name else f"{schema.get('namespace', NAMESPACE)}.{name}"), schema
            for field in schema["fields"]:
                yield from _definitions(field["type"])
        else:
            for part in ("type", "items", "values"):
                yield from _definitions(schema.get(part))
