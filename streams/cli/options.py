"""The commands' common options, and what they come to; settings are imported late, so that --help is quick."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tamiyo.schemas.display import printable

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


def connected_kafka(bootstrap: str | None) -> "KafkaSettings":
    """Return how to reach Kafka once a connection works; raises BrokerError after the commands' timeout."""
    from tamiyo.schemas.client.broker_wait import wait_for_broker
    from tamiyo.streams.settings import CommandSettings

    settings = kafka(bootstrap)

    def report(reason: str, left_s: float) -> None:
        sys.stderr.write(
            f"tamiyo: no connection to Kafka at {printable(settings.bootstrap_servers)} yet "
            f"({printable(reason)}); giving up in {left_s:.0f} s\n"
        )
        sys.stderr.flush()

    wait_for_broker(settings, CommandSettings().patience_s, report=report)
    return settings


def names() -> "TopicNames":
    """Return the installation's topic names, from the environment."""
    from tamiyo.schemas.kafka import TopicNames

    return TopicNames()
