"""The cost of encoding and decoding a record, and confluent-kafka's AvroSerializer on the same record."""

import json
import warnings
from typing import Any

from tamiyo.evaluation.common.measure import Result, Spent, repeat, spend
from tamiyo.evaluation.common.simulated_runs import Load, frames
from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.record import Record


def codec(*, layers: int, records: int, repeats: int) -> list[Result]:
    """Encode and decode a telemetry frame of `layers` layers `records` times; return microseconds per record."""
    frame, _, _ = list(frames(Load(runs=1, layers=layers, frames=1), 0))
    data = encode(frame)
    size = {"layers": layers, "bytes": len(data)}

    def encoding() -> Spent:
        return spend(lambda: [encode(frame) for _ in range(records)])

    def decoding() -> Spent:
        return spend(lambda: [decode(data, type(frame)) for _ in range(records)])

    results = []
    for name, work in (("encode", encoding), ("decode and validate", decoding)):
        spent = repeat(work, repeats=repeats)
        values = tuple(cost.cpu_s / records * 1e6 for cost in spent)
        results.append(Result("codec", f"{name}, {layers} layers", "us/record", values, "lower", size))
    return results + _confluent(frame, records=records, repeats=repeats, size=size)


def _confluent(frame: Record, *, records: int, repeats: int, size: dict[str, Any]) -> list[Result]:
    """Encode the same record with confluent-kafka's serializer and its in-memory mock registry."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside its dependencies
            from confluent_kafka.schema_registry import SchemaRegistryClient
            from confluent_kafka.schema_registry.avro import AvroSerializer
            from confluent_kafka.serialization import MessageField, SerializationContext
    except ImportError:  # its registry extra is not installed
        return []
    serializer = AvroSerializer(
        SchemaRegistryClient.new_client({"url": "mock://bench"}),
        json.dumps(avro_schema(type(frame))),
        lambda value, _: value.model_dump(),
    )
    context = SerializationContext("bench", MessageField.VALUE)

    def encoding() -> Spent:
        return spend(lambda: [serializer(frame, context) for _ in range(records)])

    values = tuple(cost.cpu_s / records * 1e6 for cost in repeat(encoding, repeats=repeats))
    return [Result("codec", f"encode by AvroSerializer, {size['layers']} layers", "us/record", values, "lower", size)]
