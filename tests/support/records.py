"""Hypothesis strategies: any valid record of a class, built from its own field constraints."""

import math
import string
import types
from enum import Enum
from typing import Annotated, Any, Union, get_args, get_origin

import numpy as np
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from tamiyo.schemas.analysis import SAMPLING
from tamiyo.schemas.columns import Columns
from tamiyo.schemas.record import Record, Tensor

IDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)


def bound(metadata: list[Any], name: str, default: Any) -> Any:
    """Return the first constraint `name` among pydantic's metadata, nested FieldInfo included."""
    for item in metadata:
        found = bound(item.metadata, name, None) if isinstance(item, FieldInfo) else getattr(item, name, None)
        if found is not None:
            return found
    return default


def values(annotation: Any, metadata: list[Any], length: int) -> st.SearchStrategy[Any]:
    """Return a strategy for one annotation; lists have `length` entries, so that columns agree."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values(arguments[0], [*metadata, *arguments[1:]], length)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return st.none() | values(inner, metadata, length)
    if origin is list:
        size = min(length, bound(metadata, "max_length", length))
        return st.lists(values(arguments[0], [], length), min_size=size, max_size=size)
    if origin is dict:
        return st.dictionaries(IDS, values(arguments[1], [], length), max_size=2)
    low, high = bound(metadata, "ge", None), bound(metadata, "le", None)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(low or 0, high if high is not None else 2**40)
    if annotation is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    if annotation is str:
        return IDS
    if annotation is bytes:
        return st.binary(max_size=8)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from(list(annotation))
    return records(annotation)


@st.composite
def records(draw: st.DrawFn, record: type[Record]) -> Any:
    """Draw a valid `record`."""
    if record is Columns:
        names = draw(st.lists(IDS, max_size=3, unique=True))
        return Columns.of(names, np.array(draw(st.lists(st.floats(), min_size=len(names), max_size=len(names)))))
    if record is Tensor:
        return Tensor.of(np.array(draw(st.lists(st.floats(-1e6, 1e6, width=32), max_size=4)), np.float32))
    length = draw(st.integers(1, 3))
    fields = {
        name: draw(values(field.annotation, field.metadata, length)) for name, field in record.model_fields.items()
    }
    return record(**consistent(record.__name__, fields, length))


def consistent(name: str, fields: dict[str, Any], length: int) -> dict[str, Any]:
    """Fix fields that a record's own rules relate to each other."""
    if name == "ModelTopology":
        layers = [layer.model_copy(update={"layer_id": f"l{i}"}) for i, layer in enumerate(fields["layers"])]
        edges = [edge.model_copy(update={"source": "l0", "target": "l0"}) for edge in fields["edges"]]
        return {**fields, "layers": layers, "edges": edges}
    if name == "ModelGraph":
        zeros = [0] * length
        square = Tensor.of(np.zeros((length, 2), np.float32))
        return {
            **fields,
            "node_features": square,
            "edge_features": square,
            "edge_source": zeros,
            "edge_target": zeros,
        }
    if name in ("HealthWindow", "HealthSignals"):
        layers = len(fields["layer_id"])
        names = fields["columns"].names
        shape = (len(names), 7, layers) if name == "HealthWindow" else (len(names), layers)
        fields["columns"] = Columns.of(names, np.linspace(0.0, 3.0, math.prod(shape)).round().reshape(shape))
        if name == "HealthSignals":
            fields["sampling"] = Columns.of(SAMPLING, [[0.5] * layers, [0.1] * layers])
    return fields
