"""The check against released schemas: every change that would leave records unreadable is caught, others are not."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tamiyo.schemas import avro_schema, compatibility
from tamiyo.schemas.codec import encode, parsed_schema
from tamiyo.schemas.telemetry import ModelPerformance
from tamiyo.schemas.topics import CATALOGUE

RELEASED = "0.1.0"
PERFORMANCE = ModelPerformance(run_id="run", step=10, time_ms=1_000, train_loss=0.5, validation_loss=0.75)
Change = Callable[[dict[str, Any]], object]


def field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in schema["fields"] if each["name"] == name)
    return found


BREAKING: dict[str, Change] = {
    "a field without a default": lambda s: s["fields"].append({"name": "new", "type": "long"}),
    "a type": lambda s: field(s, "step").update(type="string"),
    "a narrower type": lambda s: field(s, "step").update(type="int"),
    "a renamed field": lambda s: field(s, "step").update(name="steps"),
    "no longer null": lambda s: field(s, "validation_loss").update(type="double"),
    "a renamed record": lambda s: s.update(name="Performance"),
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda s: None,
    "a field with a default": lambda s: s["fields"].append({"name": "new", "type": "long", "default": 0}),
    "a field less": lambda s: s["fields"].remove(field(s, "step")),
    "a wider type": lambda s: field(s, "step").update(type="double"),
    "a renamed field with an alias": lambda s: field(s, "step").update(name="steps", aliases=["step"]),
    "words": lambda s: s.update(doc="other words"),
    "order": lambda s: s["fields"].reverse(),
}


def changed(change: Change) -> dict[str, Any]:
    schema = copy.deepcopy(avro_schema.avro_schema(type(PERFORMANCE)))
    change(schema)
    return schema


def read(schema: dict[str, Any]) -> Any:
    """Read a record of today's with `schema`, by another implementation."""
    data = io.BytesIO(encode(PERFORMANCE)[10:])
    return fastavro.schemaless_reader(data, parsed_schema(type(PERFORMANCE)), fastavro.parse_schema(schema))


@pytest.mark.parametrize("change", BREAKING.values(), ids=BREAKING)
def test_what_breaks_readers_is_caught(change: Change) -> None:
    (problem,) = compatibility.breaks(changed(change), avro_schema.avro_schema(type(PERFORMANCE)))
    assert problem


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_does_not_is_let_through(change: Change) -> None:
    assert compatibility.breaks(changed(change), avro_schema.avro_schema(type(PERFORMANCE))) == []
    read(changed(change))


def test_a_symbol_that_is_gone_is_caught() -> None:
    writer = avro_schema.avro_schema(next(t.record for t in CATALOGUE if t.name == "tamiyo.kernels"))
    reader = copy.deepcopy(writer)
    field(reader, "status")["type"]["symbols"].remove("refused")
    assert "missing_enum_symbols" in compatibility.breaks(reader, writer)[0]
    assert compatibility.breaks(writer, reader) == []


def test_a_change_deep_inside_is_caught() -> None:
    writer = avro_schema.avro_schema(next(t.record for t in CATALOGUE if t.name == "tamiyo.model.graphs"))
    text = json.dumps(writer)
    assert '{"name": "data", "type": "bytes"' in text
    reader = json.loads(text.replace('{"name": "data", "type": "bytes"', '{"name": "data", "type": "double"', 1))
    assert compatibility.breaks(reader, writer)


def test_every_release_is_compared(tmp_path: Path) -> None:
    current, releases = tmp_path / "avro", tmp_path / "released"
    current.mkdir()
    (current / "A.avsc").write_text(json.dumps({"type": "record", "name": "A", "fields": []}))
    (current / "Gone.avsc").write_text(json.dumps({"type": "record", "name": "Gone", "fields": []}))
    compatibility.release("1.0.0", current, releases)
    with pytest.raises(FileExistsError):
        compatibility.release("1.0.0", current, releases)
    fields = [{"name": "x", "type": "long", "default": 0}]
    (current / "A.avsc").write_text(json.dumps({"type": "record", "name": "A", "fields": fields}))
    assert list(compatibility.problems(current, releases)) == []
    compatibility.release("1.1.0", current, releases)
    # The new x could be read by the last version but not by the one before: the check is transitive.
    (current / "A.avsc").write_text(
        json.dumps({"type": "record", "name": "A", "fields": [{"name": "x", "type": "long"}]})
    )
    (current / "Gone.avsc").unlink()
    found = list(compatibility.problems(current, releases))
    assert [problem.split(":")[0] for problem in found] == [
        "A, against 1.0.0",
        "Gone, against 1.0.0",
        "Gone, against 1.1.0",
    ]


def test_make_check_fails_on_a_break(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert compatibility.main([]) == 0
    for path in avro_schema.FOLDER.glob("*.avsc"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "ModelPerformance.avsc").write_text(json.dumps(changed(BREAKING["a type"])))
    monkeypatch.setattr(avro_schema, "FOLDER", tmp_path)
    assert compatibility.main([]) == 1
    assert f"ModelPerformance, against {RELEASED}" in capsys.readouterr().err
    assert compatibility.main(["--release", "../x"]) == 2
    assert compatibility.main(["--release", RELEASED]) == 1
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "python -m tamiyo.schemas.compatibility" in makefile


def test_every_record_of_the_release_is_kept() -> None:
    assert all(RELEASED in avro_schema.released(topic.record) for topic in CATALOGUE)
