"""The commands' common options, and what they come to; settings are imported late, so that --help is quick."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tamiyo.schemas.kafka import KafkaSettings, TopicNames

Bootstrap = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", "-b", help="host:port of Kafka [env: TAMIYO_KAFKA_BOOTSTRAP_SERVERS]"),
]


def kafka(bootstrap: str | None) -> "KafkaSettings":
    """Return how to reach Kafka: from the environment, at `bootstrap` where it is given."""
    from tamiyo.schemas.kafka import KafkaSettings

    return KafkaSettings() if bootstrap is None else KafkaSettings(bootstrap_servers=bootstrap)


def names() -> "TopicNames":
    """Return the installation's topic names, from the environment."""
    from tamiyo.schemas.kafka import TopicNames

    return TopicNames()
