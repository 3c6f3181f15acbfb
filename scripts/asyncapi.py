"""The topics and their records as an AsyncAPI 3 document, derived from the catalogue: `schemas/asyncapi.json`.

`python -m scripts.asyncapi` writes the file; with `--check` it only reports whether the file is out of date,
with exit status 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.topics import CATALOGUE, Topic

FILE = Path(__file__).parents[1] / "schemas" / "asyncapi.json"
VERSION = "1.0.0"
"""Version of the contracts, not of the program: raised when a topic or a field is added or removed."""
KAFKA_BINDING = "0.5.0"
DESCRIPTION = """\
The Kafka messages that Tamiyo's stages, training processes and other clients exchange.

The key of a message is the id of its run, so all records of a run are in order on the same partition number of every
topic. Policy checkpoints have the policy's name as their key; control commands may have * for all runs. An installation
may prefix all topic names. Each topic has two companions: `<topic>.dlq` for unusable messages, with their bytes
unchanged, and `<topic>.late` for messages that arrived after their window was final. Their header `tamiyo-reason` gives
the reason.

A value is Avro in one of two framings: C3 01 and an eight-byte CRC-64-AVRO fingerprint (single-object encoding) or, if
the installation has a schema registry, 00 and a four-byte schema id (Confluent) under the subject `<topic>-value`.
"""


def document() -> dict[str, Any]:
    """Return the document as JSON values."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tamiyo",
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/vnd.apache.avro",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "description": "TAMIYO_KAFKA_BOOTSTRAP_SERVERS",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092"}},
            }
        },
        "channels": {topic.record.__name__: _channel(topic) for topic in CATALOGUE},
        "operations": {name: operation for topic in CATALOGUE for name, operation in _operations(topic)},
        "components": {
            "messages": {topic.record.__name__: _message(topic) for topic in CATALOGUE},
            "schemas": {
                topic.record.__name__: {
                    "schemaFormat": "application/vnd.apache.avro;version=1.9.0",
                    "schema": avro_schema(topic.record),
                }
                for topic in CATALOGUE
            },
        },
    }


def _channel(topic: Topic) -> dict[str, Any]:
    name = topic.record.__name__
    settings = {"cleanup.policy": [topic.cleanup], "retention.ms": topic.retention_ms}
    return {
        "address": topic.name,
        "description": topic.description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"kafka": {"topicConfiguration": settings, "bindingVersion": KAFKA_BINDING}},
    }


def _operations(topic: Topic) -> list[tuple[str, dict[str, Any]]]:
    name = topic.record.__name__
    channel = {"$ref": f"#/channels/{name}"}
    writer = topic.writer.removeprefix("an ")
    sent = (f"{writer}-sends-{name}", {"action": "send", "channel": channel, "summary": f"By {topic.writer}."})
    received = [
        (f"{reader}-receives-{name}", {"action": "receive", "channel": channel, "summary": f"By {reader}."})
        for reader in topic.readers
    ]
    return [sent, *received]


def _message(topic: Topic) -> dict[str, Any]:
    key = {"type": "string", "description": next(iter(topic.record.model_fields.values())).description or ""}
    return {
        "name": topic.record.__name__,
        "summary": " ".join((topic.record.__doc__ or "").split()),
        "payload": {"$ref": f"#/components/schemas/{topic.record.__name__}"},
        "bindings": {"kafka": {"key": key, "bindingVersion": KAFKA_BINDING}},
    }


def main(arguments: list[str]) -> int:
    """Write the document, or check it with `--check`; return the exit status."""
    wanted = json.dumps(document(), indent=2) + "\n"
    if "--check" in arguments:
        if not FILE.exists() or FILE.read_text(encoding="utf-8") != wanted:
            print(f"out of date: {FILE.name}; run python -m scripts.asyncapi", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
