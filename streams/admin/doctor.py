"""Checks an installation and advises how to correct it, for `tamiyo doctor`."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from tamiyo.schemas.avro_schema import FOLDER
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.codec import parsed_schema
from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RegistryError, TamiyoError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.stores import require_writable
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams.admin import growth
from tamiyo.streams.admin import schema_registry as schemas
from tamiyo.streams.admin.configuration import check, classes, unknown_variables
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.settings import StoreSettings

PACKAGES = ("esper-tamiyo", "faust-streaming", "aiokafka", "confluent-kafka", "fastavro", "torch", "torch-geometric")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str
    advice: str = ""


def examine(
    kafka: KafkaSettings, names: TopicNames, store: StoreSettings, registry: RegistrySettings
) -> Iterator[Finding]:
    """Check versions, schemas, settings, the store, the registry, the broker and its topics, in this order."""
    yield Finding("python", "ok", platform.python_version())
    for package in PACKAGES:
        yield _package(package)
    yield _schemas()
    yield from _settings()
    yield _store(store)
    yield from _registry(registry, names)
    yield from _broker(kafka, names)


def _package(package: str) -> Finding:
    try:
        return Finding(package, "ok", version(package))
    except PackageNotFoundError:
        return Finding(package, "problem", "not installed", "install esper-tamiyo with its extra 'pipeline'")


def _schemas() -> Finding:
    missing = [t.record.__name__ for t in CATALOGUE if not (FOLDER / f"{t.record.__name__}.avsc").exists()]
    for topic in CATALOGUE:
        parsed_schema(topic.record)
    if missing:
        return Finding("schemas", "problem", f"no file for {', '.join(missing)}", "reinstall the package")
    return Finding("schemas", "ok", f"{len(CATALOGUE)} records")


def _settings() -> Iterator[Finding]:
    """Check the settings of every class in this environment and its file."""
    problems = []
    try:
        check(*classes())
    except ConfigurationError as error:
        problems = str(error).splitlines()
    for problem in problems:
        yield Finding("settings", "problem", problem, "`tamiyo config reference` lists all settings")
    unknown = unknown_variables()
    for sentence in unknown:
        yield Finding("settings", "warning", sentence, "`tamiyo config reference` lists all settings")
    if not problems and not unknown:
        yield Finding("settings", "ok", "all values are valid; `tamiyo config show --changed` lists those set here")


def _store(store: StoreSettings) -> Finding:
    url = without_secrets(store.url)
    try:
        require_writable(store.url, "TAMIYO_STORE_URL")
    except ConfigurationError as error:
        return Finding("store", "problem", str(error), "set TAMIYO_STORE_URL to a store that every process can write")
    return Finding("store", "ok", f"{url} is writable")


def _registry(settings: RegistrySettings, names: TopicNames) -> Iterator[Finding]:
    if settings.url is None:
        yield Finding("registry", "ok", "not configured: records use Avro's single-object encoding")
        return
    try:
        problems = list(schemas.problems(Registry(settings), names))
    except TamiyoError as error:
        advice = "set TAMIYO_REGISTRY_URL to the registry's Confluent API" if isinstance(error, RegistryError) else ""
        yield Finding("registry", "problem", str(error), advice)
        return
    for problem in problems:
        yield Finding("registry", "problem", problem, "`tamiyo schemas register` registers compatible schemas")
    if settings.password is not None and settings.url.startswith("http:"):
        yield Finding("registry", "warning", "the password is sent unencrypted", "use an https:// URL")
    if not problems:
        yield Finding("registry", "ok", f"{len(CATALOGUE)} subjects at {settings.url} match the catalogue")


def _broker(kafka: KafkaSettings, names: TopicNames) -> Iterator[Finding]:
    topics = Topics(kafka, names)
    try:
        reason = topics.reachable()
    except BrokerError as error:
        yield Finding("broker", "problem", str(error), "correct the settings that it names")
        return
    if reason is not None:
        advice = (
            "set TAMIYO_KAFKA_BOOTSTRAP_SERVERS (and TAMIYO_KAFKA_SECURITY_PROTOCOL, _SASL_*, _SSL_*), "
            "or start one: `tamiyo broker`"
        )
        yield Finding("broker", "problem", f"no connection to {kafka.bootstrap_servers}: {reason}", advice)
        return
    if kafka.security_protocol == "SASL_PLAINTEXT":
        advice = "set TAMIYO_KAFKA_SECURITY_PROTOCOL=SASL_SSL if the broker has such a listener"
        yield Finding("encryption", "warning", "the password is sent unencrypted", advice)
    embedded = topics.embedded()
    if embedded:
        detail = f"{kafka.bootstrap_servers} is the embedded broker: in memory, 5 MiB a partition"
        yield Finding("broker", "warning", detail, "use a real Kafka for anything but experiments")
    else:
        yield Finding("broker", "ok", f"connected to {kafka.bootstrap_servers}")
    try:
        findings = [*topics.findings(), *growth.findings(kafka, names)]
    except BrokerError as error:
        yield Finding("topics", "problem", str(error))
        return
    for each in findings:
        yield Finding("topics", each.state, each.text, each.advice)
    if not findings:
        yield Finding("topics", "ok", "all topics match the catalogue")
