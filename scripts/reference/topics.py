"""The page of topics and records."""

import json
from typing import Any

from scripts.reference.markdown import code, page, prose, section, table

DAY_MS = 86_400_000


def topics() -> str:
    """Return the topic catalogue and the fields of every record."""
    from tamiyo.schemas.avro_schema import avro_schema
    from tamiyo.schemas.topics import CATALOGUE

    rows = [
        (
            code(topic.name),
            f"[{topic.record.__name__}](#{topic.record.__name__.lower()})",
            topic.writer,
            ", ".join(topic.readers),
            topic.cleanup if topic.cleanup == "compact" else f"{topic.retention_ms // DAY_MS} days",
            prose(topic.description),
        )
        for topic in CATALOGUE
    ]
    introduction = (
        "Every message is keyed by its `run_id`, so a run stays on one partition and in order (checkpoints are keyed "
        "by the policy's name, control commands by a `run_id` or `*`). `TAMIYO_TOPIC_PREFIX` precedes every name. "
        "Beside each topic, `<topic>.dlq` holds the messages that a stage could not use and `<topic>.late` those that "
        "arrived after their window was final: the original key, value and headers, with the reason in the header "
        "`tamiyo-reason`.\n\n"
        "The Avro schema of each record is a file in `schemas/avro/`; `schemas/asyncapi.json` describes all topics "
        "and records as an AsyncAPI 3 document."
    )
    records: dict[str, Any] = {}
    for topic in CATALOGUE:
        _collect_records(avro_schema(topic.record), records)
    headings = ("topic", "record", "written by", "read by", "kept", "content")
    sections = [
        section(name, f"{prose(schema['doc'])}\n\n{record_table(schema)}", level=3) for name, schema in records.items()
    ]
    return page("Topics and records", introduction, section("Topics", table(headings, rows)), "## Records\n", *sections)


def _collect_records(schema: Any, found: dict[str, Any]) -> None:
    """Add every record inside `schema` to `found`, outer records first."""
    if isinstance(schema, list):
        for each in schema:
            _collect_records(each, found)
    elif isinstance(schema, dict):
        if schema["type"] == "record":
            found.setdefault(schema["name"], schema)
        for each in schema.get("fields", []):
            _collect_records(each["type"], found)
        for key in ("items", "values"):
            _collect_records(schema.get(key), found)


def record_table(schema: dict[str, Any]) -> str:
    """Return the fields of an Avro record as a table."""
    rows = [
        (
            code(field["name"]),
            avro_text(field["type"]),
            code(json.dumps(field["default"])) if "default" in field else "",
            prose(field.get("doc", "")),
        )
        for field in schema["fields"]
    ]
    return table(("field", "type", "default", "meaning"), rows)


def avro_text(kind: Any) -> str:
    """Return an Avro type for people, with links to records."""
    if isinstance(kind, list):
        return f"{avro_text(next(each for each in kind if each != 'null'))} or null"
    if isinstance(kind, dict):
        if kind["type"] == "array":
            return f"array of {avro_text(kind['items'])}"
        if kind["type"] == "map":
            return f"map of {avro_text(kind['values'])}"
        if kind["type"] == "enum":
            return f"{kind['name']}: " + ", ".join(code(each) for each in kind["symbols"])
        return f"[{kind['name']}](#{kind['name'].lower()})"
    name = kind.rpartition(".")[2]
    return name if name == kind else f"[{name}](#{name.lower()})"
