"""A replay with a schema registry: its subjects are its own, and are removed with it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tamiyo.evaluation.replay.__main__ import Quiet
from tamiyo.schemas.client.registry import COMPATIBILITY, Registry, RegistrySettings
from tamiyo.schemas.client.subjects import Subjects, subject
from tamiyo.schemas.codec import decode, use_registry
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RegistryError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, SIGNALS, WINDOWS
from tamiyo.streams import cli
from tamiyo.streams.admin import schema_registry
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.recording.recorder import Recorder
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.recording.topic_reader import Selection
from tamiyo.streams.replay.cleanup import discard
from tamiyo.streams.replay.flow import Flow
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.replay.plan import Plan
from tamiyo.streams.replay.replayer import Replayer
from tamiyo.streams.replay.subjects import ReplaySubjects
from tests.support.kafka_log import KafkaLog
from tests.support.registry_server import RegistryServer
from tests.support.telemetry import signal

LIVE, REPLAY = TopicNames(prefix="live."), TopicNames(prefix="replay1.")
WINDOW = subject(WINDOWS.record, REPLAY)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    use_registry(None)


def test_a_replays_subjects_are_removed_and_no_others() -> None:
    with RegistryServer() as server:
        settings = RegistrySettings(url=server.url)
        list(schema_registry.register(Registry(settings), LIVE))
        live = dict(server.subjects)
        subjects = ReplaySubjects(REPLAY, settings)
        assert subjects.present() == []
        subjects.register()
        assert len(subjects.present()) == len(CATALOGUE)
        assert subjects.foreign() == []
        assert ReplaySubjects(LIVE, settings).foreign() == list(live)
        server.removed[WINDOW] = server.subjects.pop(WINDOW)  # an earlier removal was interrupted
        subjects.remove()
        subjects.remove()
        assert (server.subjects, server.removed) == (live, {})
        assert {server.compatibility[name] for name in live} == {COMPATIBILITY}


def test_schemas_that_only_the_replay_has_are_known() -> None:
    with RegistryServer() as server:
        settings = RegistrySettings(url=server.url)
        subjects = ReplaySubjects(REPLAY, settings)
        assert subjects.missing_at(LIVE, [WINDOWS, SIGNALS]) == [WINDOWS.name, SIGNALS.name]
        server.add(subject(WINDOWS.record, LIVE), "{}")  # another version
        assert subjects.missing_at(LIVE, [WINDOWS]) == [WINDOWS.name]
        list(schema_registry.register(Registry(settings), LIVE))
        assert subjects.missing_at(LIVE, [WINDOWS, SIGNALS]) == []


def test_without_a_registry_there_is_nothing() -> None:
    subjects = ReplaySubjects(REPLAY, RegistrySettings(url=None))
    subjects.register()
    subjects.remove()
    assert (subjects.present(), subjects.foreign(), subjects.missing_at(LIVE, CATALOGUE)) == ([], [], [])


def test_a_registry_that_refuses_to_remove_is_reported() -> None:
    with RegistryServer() as server:
        subjects = ReplaySubjects(REPLAY, RegistrySettings(url=server.url))
        server.failure = (405, b"not allowed")
        with pytest.raises(RegistryError, match="405 for DELETE"):
            subjects.remove()


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command; return its output in one line."""
    monkeypatch.setattr(sys, "argv", ["tamiyo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured
    return " ".join((captured.out + captured.err).split())


@pytest.mark.kafka
@pytest.mark.flow
@pytest.mark.timeout(240)
def test_a_replay_on_a_real_registry(
    real_kafka: str,
    registry_url: str,
    names: TopicNames,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    settings = RegistrySettings(url=registry_url)
    registry = Registry(settings)
    replay = TopicNames(prefix=f"{names.prefix}replay.")
    list(schema_registry.register(registry, names))
    Topics(kafka, names).create(partitions=1)
    use_registry(Subjects(registry, names))
    log = KafkaLog(kafka, names)
    log.publish(
        SIGNALS,
        [signal("telemetry.layer.health_signals", step, {"norm": [1.0]}, layers=["a"]) for step in range(10, 210, 10)],
    )
    log.close()
    Recorder(tmp_path / "recording", kafka, names, Selection(topics=(SIGNALS.name,))).run()
    recording = Recording(tmp_path / "recording")
    assert {(each.value or b"")[0] for each in recording.messages(SIGNALS)} == {0}

    def replayer() -> Replayer:
        plan = Plan(Flow.between(ReplaySource.SIGNALS, ReplayTarget.WINDOWS), replay)
        return Replayer(recording, plan, kafka, names, registry=settings, observer=Quiet())

    monkeypatch.setenv("TAMIYO_REGISTRY_URL", registry_url)
    monkeypatch.setenv("TAMIYO_KAFKA_BOOTSTRAP_SERVERS", real_kafka)
    # As with a new release: this installation has not registered its schemas, so the saved windows need the replay's.
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", f"{names.prefix}new.")
    flow = ("--prefix", replay.prefix, "--from", "signals", "--to", "windows")
    out = run(monkeypatch, capsys, "replay", str(recording.folder), *flow, "--save", str(tmp_path / "saved"))
    assert f"the schemas under {replay.prefix} stay registered" in out
    saved = [decode(each.value, WINDOWS.record) for each in Recording(tmp_path / "saved").messages(WINDOWS)]
    assert saved
    assert Topics(kafka, replay).present() == []
    with pytest.raises(BrokerError, match="in use by subject"):
        replayer().check()
    assert "removed 0 topics" in run(monkeypatch, capsys, "discard", replay.prefix)
    assert ReplaySubjects(replay, settings).present() == []

    # Where the installation has the schemas, its subjects stay, and the replay's go with its topics.
    each = replayer()
    each.check()
    each.run()
    use_registry(Subjects(registry, names))
    log = KafkaLog(kafka, replay)
    windows = [message.value for message in log.read(WINDOWS.name) if message.value is not None]
    log.close()
    assert {value[0] for value in windows} == {0}
    assert [decode(value, WINDOWS.record) for value in windows] == saved
    assert len(ReplaySubjects(replay, settings).present()) == len(CATALOGUE)
    assert discard(replay.prefix, kafka, names) > 0
    deleted = registry._call("GET", "subjects?deleted=true", kind=list)
    assert [name for name in deleted if name.startswith(replay.prefix)] == []
    assert registry.version_numbers(subject(WINDOWS.record, names)) == [1]
    assert registry.compatibility(subject(WINDOWS.record, names)) == COMPATIBILITY
    assert [decode(value, WINDOWS.record) for value in windows] == saved

    other = TopicNames(prefix=f"{names.prefix}other.")
    list(schema_registry.register(registry, other))
    with pytest.raises(ConfigurationError, match="was not registered by a replay: nothing is removed"):
        discard(other.prefix, kafka, names)
