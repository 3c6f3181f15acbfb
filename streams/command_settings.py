"""What the commands' common options come to; imported late, so that --help is quick."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tamiyo.schemas.kafka import KafkaSettings, TopicNames


def kafka(bootstrap: str | None) -> "KafkaSettings":
    """Return how to reach Kafka: from the environment, at `bootstrap` where it is given."""
    from tamiyo.schemas.kafka import KafkaSettings

    return KafkaSettings() if bootstrap is None else KafkaSettings(bootstrap_servers=bootstrap)


def names() -> "TopicNames":
    """Return the installation's topic names, from the environment."""
    from tamiyo.schemas.kafka import TopicNames

    return TopicNames()
