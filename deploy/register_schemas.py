"""Register every topic's Avro schema as `<topic>-value`, under BACKWARD_TRANSITIVE, with a registry of Confluent's API.

`python register_schemas.py http://registry:8080/apis/ccompat/v7` registers what is new and leaves the rest. It ends
with status 1, naming the topic, when a schema could not be read by readers of an earlier one, so a deployment stops
before a stage writes what others cannot read.
"""

import json
import sys
import urllib.error
import urllib.request

from tamiyo.schemas.avro_schema import avro_schema
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE

MEDIA_TYPE = "application/vnd.schemaregistry.v1+json"
TIMEOUT_S = 30.0


def call(method: str, url: str, body: dict[str, str]) -> dict[str, object]:
    """Send `body` as JSON and return the answer; raises urllib.error.HTTPError where the registry refuses."""
    request = urllib.request.Request(  # noqa: S310 - the operator's own URL, checked in main
        url, json.dumps(body).encode(), {"Content-Type": MEDIA_TYPE}, method=method
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        answer: dict[str, object] = json.load(response)
    return answer


def register(registry: str) -> dict[str, int]:
    """Register the catalogue and return each subject's schema id."""
    names = TopicNames()
    ids = {}
    for topic in CATALOGUE:
        subject = f"{names.full(topic.name)}-value"
        # Compatibility is set after the first version: some registries know no rules for a subject that is not there.
        answer = call(
            "POST", f"{registry}/subjects/{subject}/versions", {"schema": json.dumps(avro_schema(topic.record))}
        )
        ids[subject] = int(str(answer["id"]))
        call("PUT", f"{registry}/config/{subject}", {"compatibility": "BACKWARD_TRANSITIVE"})
    return ids


def main(arguments: list[str]) -> int:
    """Register with the registry named on the command line; return the exit status."""
    if len(arguments) != 1 or not arguments[0].startswith(("http://", "https://")):
        print("usage: register_schemas.py REGISTRY_URL   (http or https)", file=sys.stderr)
        return 2
    try:
        ids = register(arguments[0].rstrip("/"))
    except urllib.error.HTTPError as refusal:
        print(f"{refusal.url}: {refusal.code} {refusal.read().decode(errors='replace')[:2000]}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the registry at {arguments[0]} does not answer: {error}", file=sys.stderr)
        return 1
    for subject, number in ids.items():
        print(f"{subject}: schema {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
