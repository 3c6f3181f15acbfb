"""Registers and checks the catalogue's schemas in a registry, and connects a process to it."""

from collections.abc import Iterator

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from tamiyo.schemas.client.registry import COMPATIBILITY, Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects, schema_text, subject
from tamiyo.schemas.codec import use_registry
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE

log = structlog.get_logger(__name__)

RETRY_S = 2.0


def connect(names: TopicNames, settings: RegistrySettings | None = None) -> Subjects | None:
    """Make this process use a registry for encoding and decoding; None where the settings have no URL.

    Sends no request yet. `settings` are the environment's by default. Raises ConfigurationError where a certificate
    cannot be used.
    """
    settings = settings or RegistrySettings()
    subjects = Subjects(Registry(settings), names) if settings.url is not None else None
    use_registry(subjects)
    return subjects


def prepare(names: TopicNames, settings: RegistrySettings | None = None) -> None:
    """Connect, and fetch the ids of the whole catalogue, so that a later outage of the registry does no harm.

    Raises:
        RegistryError: the registry does not respond for `startup_timeout_s`, refuses, or lacks a schema.
    """
    settings = settings or RegistrySettings()
    subjects = connect(names, settings)
    if subjects is None:
        return

    def report(attempt: RetryCallState) -> None:
        reason = str(attempt.outcome.exception()) if attempt.outcome else ""
        left = round(settings.startup_timeout_s - (attempt.seconds_since_start or 0.0))
        log.warning("no response from the schema registry yet", reason=reason, giving_up_in_s=left)

    retrying = Retrying(
        retry=retry_if_exception(_temporary),
        wait=wait_fixed(min(RETRY_S, settings.startup_timeout_s)),
        stop=stop_after_delay(settings.startup_timeout_s),
        before_sleep=report,
        reraise=True,
    )
    retrying(subjects.prepare)


def _temporary(error: BaseException) -> bool:
    return isinstance(error, RegistryError) and error.temporary


def register(registry: Registry, names: TopicNames, *, compatibility: str = COMPATIBILITY) -> Iterator[tuple[str, int]]:
    """Register every schema of the catalogue; yield each subject and its schema's id.

    Args:
        registry: where to register them.
        names: the installation's topic names.
        compatibility: level that is set for each subject.

    Raises:
        RegistryError: a schema cannot read what an earlier version wrote; the message names the subject. A deployment
            stops here before a stage writes what others cannot read.
    """
    for topic in CATALOGUE:
        name = subject(topic.record, names)
        # Some registries accept no level for a missing subject; an existing one needs it before the new version.
        if registry.version_numbers(name):
            registry.set_compatibility(name, compatibility)
            schema_id = registry.register(name, schema_text(topic.record))
        else:
            schema_id = registry.register(name, schema_text(topic.record))
            registry.set_compatibility(name, compatibility)
        yield name, schema_id


def problems(registry: Registry, names: TopicNames) -> Iterator[str]:
    """Yield the problems of the catalogue's subjects, a sentence each, without changing anything.

    Raises RegistryError where the registry does not respond.
    """
    for topic in CATALOGUE:
        name, text = subject(topic.record, names), schema_text(topic.record)
        if registry.find(name, text) is None:
            if registry.version_numbers(name) and not registry.compatible(name, text):
                yield f"{name}: our {topic.record.__name__} cannot read what an earlier version wrote"
            else:
                yield f"{name}: {topic.record.__name__} is not registered"
            continue
        level = registry.compatibility(name)
        if level != COMPATIBILITY:
            yield f"{name}: its compatibility is {level or 'not set'}, but {COMPATIBILITY} is expected"
