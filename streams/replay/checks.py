"""Checks before a replay creates anything: the prefix, the recording, the policies and the broker."""

from typing import Any

from tamiyo.models.checkpoint_store import CheckpointStore
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RecordingError, SchemaError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import DECISIONS, WINDOWS
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.replay.cleanup import groups_under
from tamiyo.streams.replay.plan import Plan
from tamiyo.streams.replay.subjects import ReplaySubjects
from tamiyo.streams.settings import WindowSettings


def check(recording: Recording, plan: Plan, kafka: KafkaSettings, live: TopicNames, subjects: ReplaySubjects) -> None:
    """Check that a recording can be replayed here.

    Args:
        recording: what to replay.
        plan: how to replay it.
        kafka: the broker for the replay's topics.
        live: topic names of the installation, whose prefix a replay must not have.
        subjects: the replay's in a schema registry.

    Raises:
        ConfigurationError: the prefix is not free for a replay, or the policy or the window settings do not fit.
        RecordingError: the recording lacks inputs of the stages, is damaged, or has another schema.
        BrokerError: the broker or the registry does not respond, the broker is the embedded one, or the prefix is in
            use.
    """
    prefix = plan.names.prefix
    if not prefix:
        raise ConfigurationError("a replay needs its own topic prefix, e.g. --prefix replay1.")
    for taken, whose in ((live.prefix, "the installation's"), (recording.manifest.prefix, "the recorded topics'")):
        if prefix == taken:
            raise ConfigurationError(f"--prefix {prefix} is {whose}; a replay needs its own topic prefix")
    _check_recording(recording, plan)
    _check_broker(plan, kafka)
    if present := subjects.present():
        raise BrokerError(
            f"the prefix {prefix} is in use by subject {present[0]} of the schema registry; choose another, or remove "
            f"what a replay has left with `tamiyo discard {prefix}`"
        )


def _check_recording(recording: Recording, plan: Plan) -> None:
    needed = (*plan.flow.inputs, *plan.flow.views)
    missing = [topic.name for topic in needed if topic.name not in recording.manifest.selection.topics]
    if missing:
        raise RecordingError(
            f"{recording.folder} does not hold {', '.join(missing)}, which the stages read: record them, or choose "
            "another --from or --to"
        )
    if not recording.count(plan.flow.inputs):
        raise RecordingError(
            f"{recording.folder} holds no message of {', '.join(each.name for each in plan.flow.inputs)}"
        )
    _check_policies(recording, plan)
    recording.verify((*needed, DECISIONS))
    recording.probe(needed)
    _check_windows(recording, plan)


def _check_policies(recording: Recording, plan: Plan) -> None:
    if "decisions" not in plan.flow.stages:
        return
    version = plan.policy_version
    if version is None and not recording.count([DECISIONS]):
        raise ConfigurationError(
            f"{recording.folder} holds no decisions, which name the policies to use: choose one with --policy-version"
        )
    if version is not None:
        url = plan.checkpoint_url(recording)
        known = CheckpointStore(url).versions()
        if version not in known:
            available = f"versions {known[0]} to {known[-1]}" if known else "none"
            raise ConfigurationError(f"there is no policy {version}: {url} (TAMIYO_STORE_URL) holds {available}")


def _check_windows(recording: Recording, plan: Plan) -> None:
    """Refuse window settings that differ from the recorded ones: no output could be compared."""
    if "windows" not in plan.flow.stages:
        return
    settings = WindowSettings()
    for message in recording.messages(WINDOWS):
        try:
            window: Any = decode(message.value, WINDOWS.record)
        except SchemaError:
            continue
        width = window.end - window.start
        if (window.clock, width) != (settings.clock, settings.width):
            raise ConfigurationError(
                f"the recorded windows are {width} wide by {window.clock}, but TAMIYO_WINDOW_WIDTH is "
                f"{settings.width} and TAMIYO_WINDOW_CLOCK {settings.clock}: set them as for the live workers"
            )
        return


def _check_broker(plan: Plan, kafka: KafkaSettings) -> None:
    prefix, topics = plan.names.prefix, Topics(kafka, plan.names, plan.flow.topics)
    if topics.embedded():
        raise BrokerError(
            "the embedded broker keeps 5 MiB a partition and 4 partitions a topic: a replay needs a real Kafka"
        )
    present = topics.present()
    if present:
        raise BrokerError(
            f"the prefix {prefix} is in use by topic {present[0]}; choose another, or remove its topics with "
            f"`tamiyo discard {prefix}`"
        )
    groups = groups_under(kafka, plan.names)
    if groups:
        raise BrokerError(f"the prefix {prefix} is in use by consumer group {groups[0]}; choose another")
