"""Decodes messages to plain values, and counts those that no row can be made of.

A record is not validated against its contract, which would take several times as long: a table shows what is on the
topic, a loss of NaN included. What is checked is what rows and columns need: equally long columns, tensors of their
shape, and times that calendars have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from tamiyo.schemas.analysis import SAMPLING, STATISTICS, HealthSignals, HealthWindow
from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.codec import decode_fields, validate
from tamiyo.schemas.columns import DTYPES
from tamiyo.schemas.errors import RecordError, SchemaError
from tamiyo.schemas.record import Record, fill_columns
from tamiyo.schemas.telemetry import EXECUTION_DEFAULTS, OPTIONAL_HEALTH, Frame, KernelPerformance, LayerHealth
from tamiyo.schemas.topics import Topic
from tamiyo.streams.messages import Message, is_end

LATEST_MS = 4_102_444_800_000  # the year 2100, as for `Milliseconds`
TENSORS = {
    "AdaptationDecision": ("probabilities",),
    "ModelGraph": ("node_features", "edge_features", "global_features"),
    "Experience": ("probabilities", "graph.node_features", "graph.edge_features", "graph.global_features"),
}
"""Where records have tensors."""


class Decoded(NamedTuple):
    """A message with its record's values, by field."""

    message: Message
    values: dict[str, Any]


@dataclass(slots=True)
class Counts:
    """What was read of a topic."""

    messages: int = 0
    undecodable: int = 0
    """Messages that no row was made of, because their bytes are no such record."""
    removals: int = 0
    """Messages without a value, which remove a key of a compacted topic."""
    first_problem: str = ""
    """Place of the first undecodable message, and why."""


def decoded(messages: Iterable[Message], topic: Topic, counts: Counts) -> Iterator[Decoded]:
    """Yield the messages of a topic with their values; those without are counted.

    Args:
        messages: Messages of the topic.
        topic: The topic.
        counts: It is added to.

    Raises:
        RegistryError: A schema is not known yet, and the registry is unavailable.
    """
    check = _check(topic.record)
    for message in messages:
        if is_end(message.value, message.headers):
            continue
        counts.messages += 1
        if message.value is None and topic.cleanup == "compact":
            counts.removals += 1
            continue
        try:
            values = check(decode_fields(message.value, topic.record))
        except SchemaError as error:
            counts.undecodable += 1
            counts.first_problem = counts.first_problem or f"{message.place}: {error}"
            continue
        yield Decoded(message, values)


@cache
def layer_columns(record: type[Record]) -> tuple[str, ...]:
    """Return the fields of a frame that have one entry per layer; empty for any other record."""
    if record not in (KernelPerformance, LayerHealth):
        return ()
    fields = avro_schema(record)["fields"]
    lists = [each["name"] for each in fields if isinstance(each["type"], dict) and each["type"]["type"] == "array"]
    return tuple(name for name in lists if name not in Frame.model_fields)


@cache
def _check(record: type[Record]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what completes and checks the values of a record."""
    own: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values  # noqa: E731
    if record is KernelPerformance:
        own = _execution
    elif record is LayerHealth:
        own = _layer_health
    elif record is HealthSignals:
        own = _signals
    elif record is HealthWindow:
        own = _window
    elif record.__name__ in TENSORS:
        own = _tensors(record)
    timed = "time_ms" in record.model_fields

    def check(values: dict[str, Any]) -> dict[str, Any]:
        if timed:
            _require_time(values["time_ms"], record)
        return own(values)

    return check


def known_time(time_ms: int) -> bool:
    """Return whether calendars have a time, in milliseconds since the epoch."""
    return 0 <= time_ms <= LATEST_MS


def _require_time(time_ms: int, record: type[Record]) -> None:
    if not known_time(time_ms):
        raise RecordError(f"{record.__name__}.time_ms: expected ms since the epoch up to the year 2100, got {time_ms}")


def _execution(values: dict[str, Any]) -> dict[str, Any]:
    filled: dict[str, Any] = fill_columns(values, EXECUTION_DEFAULTS)
    _require_lengths(filled, layer_columns(KernelPerformance))
    return filled


def _layer_health(values: dict[str, Any]) -> dict[str, Any]:
    layers = len(values["layer_id"])
    for name in OPTIONAL_HEALTH:
        if not values[name]:
            values[name] = [None] * layers
    _require_lengths(values, layer_columns(LayerHealth))
    return values


def _require_lengths(values: dict[str, Any], names: tuple[str, ...]) -> None:
    layers = len(values["layer_id"])
    for name in names:
        if len(values[name]) != layers:
            raise RecordError(f"column {name} has {len(values[name])} entries for {layers} layers")


def _signals(values: dict[str, Any]) -> dict[str, Any]:
    values = _current(values, HealthSignals)
    layers = len(values["layer_id"])
    _require_matrix(values["columns"], layers)
    if values["sampling"]["names"] != SAMPLING:
        raise RecordError(f"expected {SAMPLING} in sampling, got {values['sampling']['names'][:3]}")
    _require_matrix(values["sampling"], layers)
    return values


def _window(values: dict[str, Any]) -> dict[str, Any]:
    values = _current(values, HealthWindow)
    _require_matrix(values["columns"], len(STATISTICS) * len(values["layer_id"]))
    return values


def _current(values: dict[str, Any], record: type[Record]) -> dict[str, Any]:
    """Return the values of a signal or window of release 0.1.0, which has lists, as today's."""
    return values if record.released_fields.isdisjoint(values) else validate(values, record).model_dump()


def _require_matrix(columns: dict[str, Any], entries: int) -> None:
    """Require that every named column has its entries."""
    if columns["width"] not in DTYPES or len(columns["values"]) != columns["width"] * len(columns["names"]) * entries:
        raise RecordError(
            f"expected {len(columns['names'])} columns of {entries} numbers, got {len(columns['values'])} bytes of "
            f"width {columns['width']}"
        )


def _tensors(record: type[Record]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    paths = [path.rpartition(".")[::2] for path in TENSORS[record.__name__]]
    graphs = any(inside for inside, _ in paths)

    def check(values: dict[str, Any]) -> dict[str, Any]:
        for inside, name in paths:
            tensor = (values[inside] if inside else values)[name]
            if len(tensor["data"]) != 4 * math.prod(tensor["shape"]):
                raise RecordError(f"{name}: {len(tensor['data'])} bytes are no tensor of {tensor['shape'][:8]}")
        if graphs:
            _require_time(values["graph"]["time_ms"], record)
        for time_ms in values.get("orders", {}).values():
            _require_time(time_ms, record)
        return values

    return check
