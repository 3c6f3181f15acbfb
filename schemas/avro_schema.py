"""The Avro schema of each record, derived from its fields, and the `.avsc` files for clients in other languages.

`python -m tamiyo.schemas.avro_schema` writes the files; with `--check` it only reports those that are out of date, with
exit status 1.
"""

import json
import sys
import types
import typing
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tamiyo.schemas.record import Record

NAMESPACE = "tamiyo"
FOLDER = Path(__file__).parent / "avro"
RELEASED = FOLDER / "released"
"""One folder per released version with its `.avsc` files, which never change again."""
PRIMITIVES: dict[type, str] = {bool: "boolean", int: "long", float: "double", str: "string", bytes: "bytes"}


@cache
def released(record: type[Record]) -> dict[str, Any]:
    """Return the released schemas of `record` as JSON values, by version; empty for a new record.

    Older programs still write them, and older topics still contain them.
    """
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(RELEASED.glob(f"*/{record.__name__}.avsc"))
    }


def avro_schema(record: type[Record], seen: set[str] | None = None) -> dict[str, Any]:
    """Return the Avro schema of a record.

    Args:
        record: The record; nested records are defined at their first use.
        seen: Names already defined in an enclosing schema; this call adds to them.

    Example:
        >>> from tamiyo.schemas.record import Tensor
        >>> [(field["name"], field["type"]) for field in avro_schema(Tensor)["fields"]]
        [('shape', {'type': 'array', 'items': 'long'}), ('data', 'bytes')]
    """
    seen = set() if seen is None else seen
    seen.add(record.__name__)
    return {
        "type": "record",
        "name": record.__name__,
        "namespace": NAMESPACE,
        "doc": " ".join((record.__doc__ or "").partition("Example:")[0].split()),
        "fields": [_field(name, field, seen) for name, field in record.model_fields.items()],
    }


def _field(name: str, field: FieldInfo, seen: set[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {"name": name, "type": _type(field.annotation, seen)}
    if field.description:
        schema["doc"] = field.description
    if field.default is not PydanticUndefined:
        schema["default"] = _default(field.default)
    return schema


def _default(value: Any) -> Any:
    """Return a default as JSON: in Avro, that of bytes is a string of their code points."""
    if isinstance(value, Record):
        return {name: _default(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Enum):
        return value.value
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _type(annotation: Any, seen: set[str]) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], seen)
    if origin in (Union, types.UnionType):
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return ["null", _type(inner, seen)]
    if origin is list:
        return {"type": "array", "items": _type(arguments[0], seen)}
    if origin is dict:
        return {"type": "map", "values": _type(arguments[1], seen)}
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return f"{NAMESPACE}.{annotation.__name__}" if annotation.__name__ in seen else avro_schema(annotation, seen)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        if annotation.__name__ in seen:
            return f"{NAMESPACE}.{annotation.__name__}"
        seen.add(annotation.__name__)
        symbols = [member.value for member in annotation]
        return {"type": "enum", "name": annotation.__name__, "namespace": NAMESPACE, "symbols": symbols}
    return PRIMITIVES[typing.cast(type, annotation)]


def main(arguments: list[str]) -> int:
    """Write the `.avsc` files, or check them with `--check`; return the exit status."""
    from tamiyo.schemas.topics import CATALOGUE

    wanted = {
        f"{topic.record.__name__}.avsc": json.dumps(avro_schema(topic.record), indent=2) + "\n" for topic in CATALOGUE
    }
    found = {path.name: path.read_text() for path in FOLDER.glob("*.avsc")}
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if "--check" in arguments:
        if stale:
            print(f"out of date: {', '.join(stale)}; run python -m tamiyo.schemas.avro_schema", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name])
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
