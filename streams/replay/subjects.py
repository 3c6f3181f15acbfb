"""The subjects of a replay in a schema registry: registered before its workers start, removed with its topics.

A replay's subjects require no compatibility, since nothing is ever added to them, while an installation's do. By this
difference they are recognised, as topics are by their retention.
"""

from collections.abc import Iterable

from tamiyo.schemas.client.registry import COMPATIBILITY, Registry, RegistrySettings
from tamiyo.schemas.client.subjects import schema_text, subject
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE, Topic
from tamiyo.streams.admin import schema_registry

REPLAYS = "NONE"
"""Compatibility level of a replay's subjects."""


class ReplaySubjects:
    """The catalogue's subjects under a replay's prefix; without a registry there are none.

    Methods raise RegistryError where the registry does not respond or refuses.
    """

    def __init__(self, names: TopicNames, settings: RegistrySettings) -> None:
        """Make a client for a replay.

        Args:
            names: topic names under the replay's prefix.
            settings: the registry; without a URL there is none.

        Raises:
            ConfigurationError: a certificate cannot be used.
        """
        self._names = names
        self._registry = Registry(settings) if settings.url is not None else None

    def register(self) -> None:
        """Register the schemas of the whole catalogue, as workers request them."""
        if self._registry is not None:
            list(schema_registry.register(self._registry, self._names, compatibility=REPLAYS))

    def present(self) -> list[str]:
        """Return the subjects that exist."""
        return [name for name in self._all() if self._registry is not None and self._registry.version_numbers(name)]

    def foreign(self) -> list[str]:
        """Return the subjects that an installation has registered."""
        return [
            name
            for name in self._all()
            if self._registry is not None and self._registry.compatibility(name) == COMPATIBILITY
        ]

    def remove(self) -> None:
        """Remove the subjects for good."""
        if self._registry is not None:
            for name in self._all():
                self._registry.remove(name)

    def missing_at(self, live: TopicNames, topics: Iterable[Topic]) -> list[str]:
        """Return the topics whose schema the installation has not registered: only a replay's subject has it.

        Args:
            live: topic names of the installation.
            topics: what to check.
        """
        return [
            topic.name
            for topic in topics
            if self._registry is not None
            and self._registry.find(subject(topic.record, live), schema_text(topic.record)) is None
        ]

    def _all(self) -> list[str]:
        return [subject(topic.record, self._names) for topic in CATALOGUE]
