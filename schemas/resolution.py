"""The schemas with which a record of another version, or of a foreign writer, is read.

Avro's resolution leaves out the fields that only the writer has. Those that a record still accepts (`released_fields`)
must be read nevertheless, so they are added to the reader's schema as the writer has them.

Records have plain Avro types. A foreign writer may give them logical types, which change no byte, so they are read as
their base types.
"""

from collections.abc import Iterator
from typing import Any

import fastavro

from tamiyo.schemas.avro_schema import NAMESPACE, avro_schema
from tamiyo.schemas.errors import DecodeError
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


MILLISECONDS = ("timestamp-millis", "local-timestamp-millis", "time-millis")
"""Logical types that a field in milliseconds may have."""
TIMES = ("date", "time-", "timestamp-", "local-timestamp-")
"""How the names of all logical types of times begin."""


def base_types(record: type[Record], writer: Any) -> Any:
    """Return a foreign writer's schema with the base types of its logical types.

    Args:
        record: The record to read.
        writer: The schema it was written with, as JSON values.

    Raises:
        DecodeError: A field that the record has in milliseconds has a logical type of another unit.
    """
    own = {name: {field["name"] for field in each["fields"]} for name, each in _definitions(avro_schema(record))}
    for name, definition in _definitions(writer):
        for field in definition["fields"]:
            if field["name"].endswith("_ms") and field["name"] in own.get(name, ()):
                for found in _logical_types(field):
                    if found.startswith(TIMES) and found not in MILLISECONDS:
                        raise DecodeError(
                            f"gives {field['name']} the logical type {found}, but it is in milliseconds: "
                            "write timestamp-millis, or no logical type"
                        )
    return _plain(writer)


def _plain(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    nested = ("type", "items", "values", "fields")
    return {key: _plain(each) if key in nested else each for key, each in schema.items() if key != "logicalType"}


def _logical_types(schema: Any) -> Iterator[str]:
    """Yield the logical types of a field, of its union, elements or values; not those of a nested record's fields."""
    if isinstance(schema, list):
        for each in schema:
            yield from _logical_types(each)
    elif isinstance(schema, dict):
        if isinstance(schema.get("logicalType"), str):
            yield schema["logicalType"]
        for part in ("type", "items", "values"):
            yield from _logical_types(schema.get(part))


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
