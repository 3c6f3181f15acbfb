"""The topics and their records as an AsyncAPI 3 document, derived from the catalogue: `schemas/asyncapi.json`.

`python -m tamiyo.schemas.asyncapi` writes it; with `--check` it says whether it is out of date and exits 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.topics import CATALOGUE, Topic

FILE = Path(__file__).parent / "asyncapi.json"
VERSION = "1.0.0"
"""Of the contracts, not of the program: raised when a topic or a field comes or goes."""
KAFKA_BINDING = "0.5.0"
DESCRIPTION = """\
What Tamiyo's stages, the training processes and anyone else say to each other over Kafka.

Every message is keyed by its run's id, so a run stays on one partition number of every topic, in order (policy
checkpoints are keyed by the policy's name, control also by * for all runs). An installation may put a prefix before
every topic's name. Beside each topic stand `<topic>.dlq`, for messages that could not be used, as they came, and
`<topic>.late`, for those that came after their window was final; the header `tamiyo-reason` says why.

A value is Avro in one of two framings: C3 01 and eight bytes of CRC-64-AVRO fingerprint (single-object encoding), or,
where the installation has a schema registry, 00 and four bytes of schema id (Confluent), under `<topic>-value`.
"""


def document() -> dict[str, Any]:
    """Return the document as plain values."""
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
    """Write the document, or check it; return the exit status."""
    wanted = json.dumps(document(), indent=2) + "\n"
    if "--check" in arguments:
        if not FILE.exists() or FILE.read_text(encoding="utf-8") != wanted:
            print(f"out of date: {FILE.name}; run python -m tamiyo.schemas.asyncapi", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
