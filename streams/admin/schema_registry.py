"""The catalogue's schemas in the installation's registry: registered, checked, and waited for at a start."""

from collections.abc import Iterator

import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from tamiyo.schemas.codec import use_registry
from tamiyo.schemas.errors import RegistryError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.registry import COMPATIBILITY, Registry, RegistrySettings
from tamiyo.schemas.subjects import Subjects, schema_text, subject
from tamiyo.schemas.topics import CATALOGUE

log = structlog.get_logger(__name__)

RETRY_S = 2.0


def connect(names: TopicNames, settings: RegistrySettings | None = None) -> Subjects | None:
    """Let the process read and write with the settings' registry, the environment's by default; None where it has none.

    Nothing is asked yet. Raises ConfigurationError where a certificate cannot be used.
    """
    settings = settings or RegistrySettings()
    subjects = Subjects(Registry(settings), names) if settings.url is not None else None
    use_registry(subjects)
    return subjects


def prepare(names: TopicNames, settings: RegistrySettings | None = None) -> None:
    """`connect`, and have the ids of the whole catalogue, so that a registry that goes away later is not missed.

    Raises RegistryError where the registry stays away for `startup_timeout_s`, refuses, or lacks a schema.
    """
    settings = settings or RegistrySettings()
    subjects = connect(names, settings)
    if subjects is None:
        return

    def tell(attempt: RetryCallState) -> None:
        reason = str(attempt.outcome.exception()) if attempt.outcome else ""
        left = round(settings.startup_timeout_s - (attempt.seconds_since_start or 0.0))
        log.warning("the schema registry does not answer yet", reason=reason, giving_up_in_s=left)

    patient = Retrying(
        retry=retry_if_exception(_temporary),
        wait=wait_fixed(min(RETRY_S, settings.startup_timeout_s)),
        stop=stop_after_delay(settings.startup_timeout_s),
        before_sleep=tell,
        reraise=True,
    )
    patient(subjects.prepare)


def _temporary(error: BaseException) -> bool:
    return isinstance(error, RegistryError) and error.temporary


def register(registry: Registry, names: TopicNames) -> Iterator[tuple[str, int]]:
    """Register every schema of the catalogue under BACKWARD_TRANSITIVE; yield each subject with its schema's id.

    Raises RegistryError, naming the subject, for a schema that could not read what an earlier one wrote, so that a
    deployment stops before a stage writes what others cannot read.
    """
    for topic in CATALOGUE:
        name = subject(topic.record, names)
        # Some registries know no rules for a subject that is not there; where it is, they must hold for this version.
        if registry.version_numbers(name):
            registry.set_compatibility(name, COMPATIBILITY)
            schema_id = registry.register(name, schema_text(topic.record))
        else:
            schema_id = registry.register(name, schema_text(topic.record))
            registry.set_compatibility(name, COMPATIBILITY)
        yield name, schema_id


def problems(registry: Registry, names: TopicNames) -> Iterator[str]:
    """Yield what is wrong with the catalogue's subjects, a sentence each; nothing is changed.

    Raises RegistryError where the registry does not answer.
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
