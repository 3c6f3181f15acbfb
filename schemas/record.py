"""The base class of every record, and the value types of their fields.

A record is validated when it is made and when it is read. Code behind that boundary relies on it: a loss is finite, and
columns are equally long.
"""

from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MAX_LAYERS = 10_000  # an order of magnitude above the deepest networks trained today
MAX_ELEMENTS = 4_000_000  # 16 MB of float32: above a broker's default message size, so no valid tensor reaches it

# No control characters, spaces or separators, because ids become file names, log fields and metric labels.
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\w][\w.:/\-]*$")]
Text = Annotated[str, StringConstraints(max_length=2000)]
Real = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**62)]
LayerCount = Annotated[int, Field(ge=0, le=MAX_LAYERS)]  # so that a window's sum of them is still a Count
Step = Annotated[int, Field(ge=0, le=2**53)]  # windows add their width to it, and must stay a Count
Milliseconds = Annotated[int, Field(ge=0, le=4_102_444_800_000)]  # up to the year 2100

Column = Annotated[list[Real], Field(max_length=MAX_LAYERS)]
Ratios = Annotated[list[Ratio], Field(max_length=MAX_LAYERS)]
NonNegatives = Annotated[list[NonNegative], Field(max_length=MAX_LAYERS)]
Counts = Annotated[list[Count], Field(max_length=MAX_LAYERS)]
Sparse = Annotated[list[Real | None], Field(max_length=MAX_LAYERS)]  # null: not measured, which is not zero
Ids = Annotated[list[Id], Field(max_length=MAX_LAYERS)]


_set = object.__setattr__  # a record itself is frozen


class Record(BaseModel):
    """One Avro record. Its fields, in order, are the wire contract."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", allow_inf_nan=False)

    released_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of released versions that the record still accepts, though it does not have them any more."""

    @classmethod
    def of_checked(cls, **values: Any) -> Self:
        """Return a record of values that are known to keep the contract, without checking them again.

        Pydantic's `model_construct` does the same for four times the time: it looks for defaults and aliases.

        Args:
            **values: Every field.
        """
        record = cls.__new__(cls)
        _set(record, "__dict__", values)
        _set(record, "__pydantic_fields_set__", set(values))
        _set(record, "__pydantic_extra__", None)
        _set(record, "__pydantic_private__", None)
        return record


class Tensor(Record):
    """A dense float32 array.

    Example:
        >>> tensor = Tensor.of([[1, 2], [3, 4]])
        >>> tensor.shape, tensor.numpy().tolist()
        ([2, 2], [[1.0, 2.0], [3.0, 4.0]])
    """

    shape: Annotated[list[Count], Field(max_length=4, description="Extent of each axis.")]
    data: Annotated[bytes, Field(description="Little-endian float32 values, row-major, 4 bytes per element.")]

    @model_validator(mode="after")
    def _sized(self) -> Self:
        elements = 1
        for extent in self.shape:
            elements *= extent
        if elements > MAX_ELEMENTS:
            raise ValueError(f"expected at most {MAX_ELEMENTS} elements, got a tensor of {self.shape}")
        if len(self.data) != 4 * elements:
            raise ValueError(f"expected {4 * elements} bytes for a tensor of {self.shape}, got {len(self.data)}")
        if not np.isfinite(np.frombuffer(self.data, "<f4")).all():
            raise ValueError("a tensor must be finite")
        return self

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Self:
        """Return a tensor of any values that numpy can convert to float32, of at most four axes."""
        array = np.ascontiguousarray(values, dtype="<f4")
        return cls(shape=list(array.shape), data=array.tobytes())

    def numpy(self) -> npt.NDArray[np.float32]:
        """Return the values in their shape, read-only."""
        return np.frombuffer(self.data, "<f4").reshape(self.shape)


def require_columns(record: BaseModel, length: int, names: list[str]) -> None:
    """Check the length of columns.

    Args:
        record: The record with the columns.
        length: The number of layers.
        names: The columns to check.

    Raises:
        ValueError: A column has another length.
    """
    for name in names:
        found = len(getattr(record, name))
        if found != length:
            raise ValueError(f"column {name} has {found} entries for {length} layers")


def fill_columns(values: Any, defaults: dict[str, Any], key: str = "layer_id") -> Any:
    """Return a raw frame with defaults, one entry per layer, in its missing or empty columns.

    Args:
        values: What pydantic validates; anything but a dict with a list under `key` is returned as it is.
        defaults: Default entry by column.
        key: The column that sets the number of layers.
    """
    if isinstance(values, dict) and isinstance(values.get(key), list):
        length = len(values[key])
        missing = {name: [default] * length for name, default in defaults.items() if not values.get(name)}
        return {**values, **missing}
    return values
