"""The AsyncAPI document: valid by AsyncAPI's own schema, whole, and current.

`asyncapi-3.0.0.json.gz` is `schemas/3.0.0.json` of the npm package `@asyncapi/specs` 6.11.1 (Apache-2.0), unchanged.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from scripts import asyncapi

from tamiyo.schemas.avro_schema import FOLDER
from tamiyo.schemas.topics import CATALOGUE


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(asyncapi.FILE.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = json.loads(gzip.decompress((Path(__file__).parent / "asyncapi-3.0.0.json.gz").read_bytes()))
    return jsonschema.Draft7Validator(schema)


def test_fits_asyncapis_own_schema(validator: jsonschema.Draft7Validator, document: dict[str, Any]) -> None:
    assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize(
    "path",
    [("info", "title"), ("operations", "host-sends-LayerHealth", "action"), ("servers", "kafka", "protocol")],
    ids="/".join,
)
def test_the_schema_would_notice(
    validator: jsonschema.Draft7Validator, document: dict[str, Any], path: tuple[str, ...]
) -> None:
    wrong = json.loads(json.dumps(document))
    place = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = 7
    assert not validator.is_valid(wrong)


def test_it_matches_the_catalogue(document: dict[str, Any]) -> None:
    assert {each["address"] for each in document["channels"].values()} == {topic.name for topic in CATALOGUE}
    for topic in CATALOGUE:
        name = topic.record.__name__
        assert document["components"]["schemas"][name]["schema"] == json.loads((FOLDER / f"{name}.avsc").read_text())
        readers = {
            key.removesuffix(f"-receives-{name}")
            for key, each in document["operations"].items()
            if each["action"] == "receive" and each["channel"]["$ref"] == f"#/channels/{name}"
        }
        assert readers == set(topic.readers)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def follow(value: Any) -> int:
        if isinstance(value, dict) and "$ref" in value:
            place = document
            for step in value["$ref"].removeprefix("#/").split("/"):
                place = place[step]
            return 1
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return sum(follow(each) for each in items)

    assert follow(document) == 2 * len(CATALOGUE) + len(document["operations"])


def test_the_check_notices_an_old_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert asyncapi.main(["--check"]) == 0
    monkeypatch.setattr(asyncapi, "FILE", tmp_path / "asyncapi.json")
    assert asyncapi.main(["--check"]) == 1
    assert asyncapi.main([]) == 0
    assert asyncapi.main(["--check"]) == 0
    text = asyncapi.FILE.read_text()
    asyncapi.FILE.write_text(text.replace('"tamiyo.rewards"', '"tamiyo.reward"'))
    assert asyncapi.main(["--check"]) == 1
    assert "out of date: asyncapi.json" in capsys.readouterr().err
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "python -m scripts.asyncapi --check" in makefile
