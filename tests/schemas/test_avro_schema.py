"""The schema files match the records."""

import json

import pytest

from tamiyo.schemas.avro_schema import FOLDER, avro_schema, main
from tamiyo.schemas.topics import CATALOGUE, Topic


@pytest.mark.parametrize("topic", CATALOGUE, ids=lambda topic: topic.name)
def test_the_file_is_current(topic: Topic) -> None:
    assert json.loads((FOLDER / f"{topic.record.__name__}.avsc").read_text()) == avro_schema(topic.record)


def test_check_passes_on_the_tree_and_every_field_is_typed() -> None:
    assert main(["--check"]) == 0
    schema = avro_schema(next(topic.record for topic in CATALOGUE if topic.name == "tamiyo.kernels"))
    types = {field["name"]: field["type"] for field in schema["fields"]}
    assert types["size_bytes"] == "long"
    assert types["compile_time_ms"] == "double"
    assert types["status"] == {
        "type": "enum",
        "name": "KernelStatus",
        "namespace": "tamiyo",
        "symbols": ["compiled", "refused"],
    }


def test_check_notices_a_changed_file(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("tamiyo.schemas.avro_schema.FOLDER", tmp_path)
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert main(["--check"]) == 0
    (tmp_path / "Stray.avsc").write_text("{}")
    assert main(["--check"]) == 1
