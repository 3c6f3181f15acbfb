"""Checks an installation and advises how to correct it, for `tamiyo doctor`."""

import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from tamiyo.schemas.avro_schema import FOLDER
from tamiyo.schemas.client.compacted import newest_records
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.client.registry import Registry, RegistrySettings
from tamiyo.schemas.codec import parsed_schema
from tamiyo.schemas.display import without_secrets
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RegistryError, TamiyoError
from tamiyo.schemas.files import folder_problem
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.stores import require_writable
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin import groups, growth
from tamiyo.streams.admin import schema_registry as schemas
from tamiyo.streams.admin.configuration import check, classes, unknown_variables
from tamiyo.streams.admin.groups import Membership, StageGroup
from tamiyo.streams.admin.store_mark import require_own_stores
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.settings import DecisionSettings, KernelSettings, LearnerSettings, WorkerSettings, store_setting

OVERDUE_S = 600  # a learner updates every half minute where it has a batch; a release may be refused some times
PACKAGES = ("esper-tamiyo", "faust-streaming", "aiokafka", "confluent-kafka", "fastavro", "torch", "torch-geometric")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    state: Literal["ok", "warning", "problem"]
    detail: str
    advice: str = ""


def examine(kafka: Callable[[], KafkaSettings]) -> Iterator[Finding]:
    """Check an installation: packages, settings, stores, the registry, the broker, topics, groups, the learner.

    What needs the broker is left out where it is away; the rest is checked nevertheless.

    Args:
        kafka: makes the settings of the broker; all others are the environment's.
    """
    yield Finding("python", "ok", platform.python_version())
    for package in PACKAGES:
        yield _package(package)
    yield _schemas()
    yield from _settings(kafka)
    yield from _made("state directory", lambda: [_state_directory(WorkerSettings())])
    stores: list[str] = []
    yield from _made("store", lambda: _stores(stores))
    yield from _made("registry", lambda: _registry(RegistrySettings(), TopicNames()))
    yield from _made("broker", lambda: _broker(kafka(), TopicNames(), stores))


def _made(what: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check; its wrong settings and the broker's errors are one finding."""
    try:
        yield from check()
    except ConfigurationError:
        yield Finding(what, "problem", "not checked: its settings are wrong, see above")
    except BrokerError as error:
        yield Finding(what, "problem", str(error))


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


def _settings(kafka: Callable[[], KafkaSettings]) -> Iterator[Finding]:
    """Check the settings of every class in this environment and its file."""
    problems = []
    try:
        check(kafka, *classes())
    except ConfigurationError as error:
        problems = str(error).splitlines()
    for problem in problems:
        yield Finding("settings", "problem", problem, "`tamiyo config reference` lists all settings")
    unknown = unknown_variables()
    for sentence in unknown:
        yield Finding("settings", "warning", sentence, "`tamiyo config reference` lists all settings")
    if not problems and not unknown:
        yield Finding("settings", "ok", "all values are valid; `tamiyo config show --changed` lists those set here")


def _state_directory(worker: WorkerSettings) -> Finding:
    problem = folder_problem(Path(worker.state_dir))
    if problem is None:
        return Finding("state directory", "ok", f"{worker.state_dir} is writable")
    return Finding(
        "state directory", "problem", problem, "set TAMIYO_WORKER_STATE_DIR to a folder that the worker can write"
    )


def _stores(found: list[str]) -> Iterator[Finding]:
    """Check each store, and add those that can be used to `found`."""
    wanted = {
        KernelSettings().store_url: store_setting(KernelSettings, "store_url"),
        DecisionSettings().checkpoint_url: store_setting(DecisionSettings, "checkpoint_url"),
        LearnerSettings().checkpoint_url: store_setting(LearnerSettings, "checkpoint_url"),
    }
    for url, setting in wanted.items():
        try:
            require_writable(url, setting)
        except ConfigurationError as error:
            yield Finding("store", "problem", str(error), f"set {setting} to a store that every process can write")
        else:
            found.append(url)
            yield Finding("store", "ok", f"{without_secrets(url)} is writable")


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


def _broker(kafka: KafkaSettings, names: TopicNames, stores: Iterable[str]) -> Iterator[Finding]:
    """Check the broker and, where it responds, everything on it."""
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
        detail = f"no connection to {kafka.bootstrap_servers}: {reason}; topics, groups and learner are not checked"
        yield Finding("broker", "problem", detail, advice)
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
    yield from _marks(stores, kafka, names)
    existing = topics.present()
    yield from _made("topics", lambda: _topics(topics, kafka, names))
    if not existing:
        return
    members: dict[str, Membership | BrokerError] = {}
    yield from _made("groups", lambda: _groups(kafka, names, members, embedded=embedded))
    decisions = members.get("decisions")
    deciding = isinstance(decisions, Membership) and decisions.members > 0
    yield from _made("learner", lambda: _learner(kafka, names, embedded=embedded, deciding=deciding))


def _marks(stores: Iterable[str], kafka: KafkaSettings, names: TopicNames) -> Iterator[Finding]:
    """Check that the stores are this installation's."""
    for url in stores:
        try:
            require_own_stores({url: False}, kafka, names)
        except (ConfigurationError, BrokerError) as error:
            yield Finding("store's mark", "problem", str(error))
        else:
            yield Finding("store's mark", "ok", f"{without_secrets(url)} belongs to no other installation")


def _topics(topics: Topics, kafka: KafkaSettings, names: TopicNames) -> Iterator[Finding]:
    findings = topics.findings()
    if topics.present():
        findings += growth.findings(kafka, names)
    for each in findings:
        yield Finding("topics", each.state, each.text, each.advice)
    if not findings:
        yield Finding("topics", "ok", "partitions, replicas in sync, retention, cleanup and sizes match the catalogue")


def _groups(
    kafka: KafkaSettings, names: TopicNames, members: dict[str, Membership | BrokerError], *, embedded: bool
) -> Iterator[Finding]:
    """Check each stage's members, which are added to `members`, and give its committed lag."""
    found = groups.stage_groups(kafka, names)
    members.update({} if embedded else groups.memberships(kafka, found))
    for each in found:
        yield _group(each, members.get(each.stage))
    detail = (
        "a committed lag counts what open windows, waiting decisions and unfinished rewards still need, also after it "
        "was read; tamiyo_stage_lag_records of a worker counts what is unread"
    )
    yield Finding("lag", "ok", detail + ("; the embedded broker does not report members" if embedded else ""))


def _group(group: StageGroup, membership: Membership | BrokerError | None) -> Finding:
    what, total = f"stage {group.stage}", sum(group.lag.values())
    lag = f"committed lag {total:,} records"
    if len(group.lag) > 1 and total:
        lag += f" ({', '.join(f'{topic} {count:,}' for topic, count in group.lag.items() if count)})"
    if isinstance(membership, BrokerError):
        advice = "`tamiyo topics acls --role operator --check` lists what this user lacks"
        return Finding(what, "warning", f"{membership}; {lag}", advice)
    if membership is None:
        return Finding(what, "ok", lag)
    start = f"`tamiyo worker --stage {group.stage}` runs it"
    if not membership.members:
        return Finding(
            what, "problem" if total else "warning", f"no worker is in its group {group.group}; {lag}", start
        )
    workers = f"{membership.members} worker{'s' if membership.members > 1 else ''}"
    if membership.rebalancing:
        return Finding(
            what, "warning", f"{workers}, and partitions are being assigned; {lag}", "check again in a minute"
        )
    if membership.unassigned:
        places = membership.unassigned
        listed = ", ".join(f"{topic}/{number}" for topic, number in places[:3]) + (", ..." if len(places) > 3 else "")
        advice = "restart its workers, and keep their logs: a group of Kafka assigns all partitions of its topics"
        return Finding(what, "problem", f"{workers}, but nobody has {listed}; {lag}", advice)
    return Finding(what, "ok", f"{workers}; {lag}")


def _learner(kafka: KafkaSettings, names: TopicNames, *, embedded: bool, deciding: bool) -> Iterator[Finding]:
    """Tell from the newest release, and the experiences since, whether the learner learns: it is in no group."""
    settings = LearnerSettings()
    topic, policy = names.full(EXPERIENCE.name), settings.policy
    with PartitionReader(kafka) as reader:
        announced = newest_records(reader, names.full(CHECKPOINTS.name), PolicyCheckpoint)
        release, orders = announced.get(policy), announced.get(policy_orders_key(policy))
        if release is None:
            detail = f"policy {policy!r} was never released" + (": decisions wait for it" if deciding else "")
            yield Finding("learner", "problem" if deciding else "warning", detail, "`tamiyo learner` runs it")
            return
        waiting = overdue = 0
        before_ms = time.time_ns() // 1_000_000 - OVERDUE_S * 1_000
        for each in reader.ranges(topic):
            start = max(each.start, release.offsets.get(str(each.partition), each.start))
            waiting += max(0, each.end - start)
            if start < each.end and not embedded:  # it cannot look up times
                cut = reader.offset_at(topic, each.partition, before_ms)
                overdue += max(0, (each.end if cut is None else cut) - start)
    released = datetime.fromtimestamp(release.time_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
    detail = f"version {release.version} was announced at {released}; {waiting:,} experiences since"
    if orders is not None and orders.frozen:
        yield Finding("learner", "warning", f"it is frozen; {detail}", "`tamiyo policy freeze --thaw` lets it go on")
    elif overdue >= settings.fresh_batch:
        advice = (
            "is it running (`tamiyo learner`)? If so, its log and tamiyo_learner_gate_failures_total tell whether the "
            "gates refuse what it learns"
        )
        overdue_text = f"{overdue:,} of them wait for more than {OVERDUE_S // 60} minutes, and a batch has "
        yield Finding("learner", "warning", f"{detail}; {overdue_text}{settings.fresh_batch}", advice)
    else:
        yield Finding("learner", "ok", detail)
