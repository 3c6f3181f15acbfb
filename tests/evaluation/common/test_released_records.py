"""Records as the last release writes them."""

import pytest

from tamiyo.evaluation.common import released_records
from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.evaluation.common.simulated_runs import Load, frames, topology
from tamiyo.schemas.avro_schema import released
from tamiyo.schemas.codec import decode, single_object_header
from tamiyo.schemas.record import Record

RECORDS = [topology("run", 3), *list(frames(Load(runs=1, layers=3, frames=1), 0))]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_of_the_last_release_is_read_as_the_same_record(record: Record) -> None:
    data = encode_released(record)
    assert data.startswith(single_object_header(released(type(record))["0.1.0"]))
    assert decode(data, type(record)) == record


def test_the_last_release_is_the_highest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    record = RECORDS[1]
    old = {"type": "record", "name": "KernelPerformance", "fields": [{"name": "run_id", "type": "string"}]}
    monkeypatch.setattr(released_records, "released", lambda kind: {"0.10.0": old, "0.9.0": {**old, "name": "Older"}})
    released_records._schema.cache_clear()
    try:
        assert encode_released(record)[10:] == encode_released(record, "0.9.0")[10:]
        assert encode_released(record) == encode_released(record, "0.10.0") != encode_released(record, "0.9.0")
    finally:
        released_records._schema.cache_clear()
