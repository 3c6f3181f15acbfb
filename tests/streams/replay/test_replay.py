"""Record and replay on a real Kafka: same bytes, live topics unchanged, problems reported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tamiyo.evaluation.common.live_runs import Live, wait, workers
from tamiyo.evaluation.common.simulated_runs import Load
from tamiyo.evaluation.replay.__main__ import Quiet, simulated
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import BrokerError, ConfigurationError, RecordingError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, DECISIONS, GRAPHS, SIGNALS, TELEMETRY, WINDOWS
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.process.children import Children
from tamiyo.streams.recording.recorder import Recorder
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.recording.topic_reader import Selection, TopicReader
from tamiyo.streams.replay.cleanup import discard
from tamiyo.streams.replay.compare import RecordingSide, TopicsSide, compare
from tamiyo.streams.replay.flow import Flow
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.replay.plan import Plan
from tamiyo.streams.replay.replayer import Replayed, Replayer

pytestmark = [pytest.mark.kafka, pytest.mark.flow, pytest.mark.timeout(600)]

LOAD = Load(runs=3, layers=4, frames=40, name="whole")
CUT = Load(runs=1, layers=4, frames=8, name="cut", seed=7)
LIVE_S = 4.0
CHAIN = ("intake", "windows", "graphs", "decisions")


@dataclass(frozen=True)
class Recorded:
    """An idle live installation and its recording."""

    kafka: KafkaSettings
    names: TopicNames
    folder: Path
    store: str


@pytest.fixture(scope="module")
def recorded(real_kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three runs under two policies and several orders, and one run that was killed."""
    folder = tmp_path_factory.mktemp("live")
    kafka, names, store = (
        KafkaSettings(bootstrap_servers=real_kafka),
        TopicNames(prefix="live."),
        f"file://{folder}/store",
    )
    Topics(kafka, names).create(partitions=4)
    live = Live(kafka, names, store)
    live.release(0)
    with workers(live, folder, store, CHAIN) as children:
        wait(lambda: "all stages run" in (folder / "live-worker.log").read_text(), children, "the worker")
        live.simulate(CUT, seconds=0.2, cut=True)
        simulated(live, LOAD, LIVE_S, new_policy=1)
        windows = LOAD.windows(50) + CUT.windows(50) - 1  # the killed run's last window stays open
        wait(lambda: live.drained([*LOAD.run_ids, *CUT.run_ids], windows=windows), children, "the decisions")
    recording = folder / "recording"
    manifest = Recorder(recording, kafka, names, Selection(), checkpoint_url=f"{store}/checkpoints").run()
    assert manifest.complete
    assert manifest.policy_versions == [0, 1]
    return Recorded(kafka, names, recording, store)


def ends(kafka: KafkaSettings, names: TopicNames) -> list[object]:
    """Return the ends of all topics of an installation."""
    reader = TopicReader(kafka, names)
    try:
        return list(reader.resolve(Selection()))
    finally:
        reader.close()


def replayer(recorded: Recorded, prefix: str, **options: object) -> Replayer:
    source = options.pop("source", ReplaySource.TELEMETRY)
    recording = options.pop("recording", Recording(recorded.folder))
    plan = Plan(Flow.between(source, ReplayTarget.DECISIONS), TopicNames(prefix=prefix), **options)  # type: ignore[arg-type]
    return Replayer(recording, plan, recorded.kafka, recorded.names, observer=Quiet())  # type: ignore[arg-type]


def replayed(recorded: Recorded, prefix: str, **options: object) -> Replayed:
    each = replayer(recorded, prefix, **options)
    each.check()
    return each.run()


@pytest.mark.parametrize(
    ("speed", "count", "source"),
    [(1.0, 1, ReplaySource.TELEMETRY), (100.0, 4, ReplaySource.TELEMETRY), (None, 1, ReplaySource.SIGNALS)],
    ids=["1x-one-worker", "100x-four-workers", "max-from-signals"],
)
def test_a_replay_computes_the_same_bytes(
    recorded: Recorded, names: TopicNames, speed: float | None, count: int, source: ReplaySource
) -> None:
    before = ends(recorded.kafka, recorded.names)
    result = replayed(recorded, names.prefix, speed=speed, workers=count, source=source)
    assert ends(recorded.kafka, recorded.names) == before  # live topics are unchanged
    assert result.rejected == {}
    if speed == 1.0:
        assert result.seconds > LIVE_S
    sides = RecordingSide(Recording(recorded.folder)), TopicsSide(recorded.kafka, names)
    whole = compare(*sides, runs=LOAD.run_ids)
    assert [(each.topic, each.same, each.equal) for each in whole] == [
        (topic.name, LOAD.windows(50), True) for topic in (WINDOWS, GRAPHS, DECISIONS)
    ], whole
    # The killed run had an open window when it was recorded; the replay's end closes it.
    cut = compare(*sides, runs=CUT.run_ids)
    assert [(each.same, each.differ, each.left_only, each.right_only) for each in cut] == [(1, 0, 0, 1)] * 3
    assert result.computed[DECISIONS.name] == LOAD.windows(50) + 2
    assert discard(names.prefix, recorded.kafka, recorded.names) > 0
    assert Topics(recorded.kafka, names).present() == []


def test_other_workers_and_another_policy(recorded: Recorded, names: TopicNames, tmp_path: Path) -> None:
    """Workers that are started elsewhere; one policy for all decisions, recorded with two."""
    each = replayer(recorded, names.prefix, workers=0, policy_version=1, source=ReplaySource.GRAPHS)
    each.check()
    with Children(tmp_path, each.environment()) as children:
        # A worker needs the topics at its start.
        Topics(recorded.kafka, names, Flow.between(ReplaySource.GRAPHS, ReplayTarget.DECISIONS).topics).create(
            partitions=4, retention_ms=-1
        )
        children.start("worker", ["worker", "--stage", "decisions"])
        result = each.run()
    assert result.computed == {DECISIONS.name: LOAD.windows(50) + 1}
    (found,) = compare(RecordingSide(Recording(recorded.folder)), TopicsSide(recorded.kafka, names), [DECISIONS])
    assert found.differ > 0
    assert found.left_only == found.right_only == 0
    assert found.first is not None
    computed = TopicsSide(recorded.kafka, names).messages(DECISIONS)
    assert {decode(each.value, AdaptationDecision).policy_version for each in computed} == {1}


def test_an_impossible_replay_is_refused_before_anything_is_created(
    recorded: Recorded, names: TopicNames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(prefix: str, error: type[Exception], words: str, **options: object) -> None:
        with pytest.raises(error, match=words):
            replayer(recorded, prefix, **options).check()

    refused("", ConfigurationError, "needs its own topic prefix")
    refused("live.", ConfigurationError, "is the installation's; a replay needs its own topic prefix")
    Topics(recorded.kafka, names, [WINDOWS]).create(partitions=1)
    refused(names.prefix, BrokerError, "is in use by topic")
    with pytest.raises(ConfigurationError, match="was not created by a replay: nothing is removed"):
        discard(names.prefix, recorded.kafka, recorded.names)
    monkeypatch.setenv("TAMIYO_STORE_URL", recorded.store)
    refused("new.", ConfigurationError, "there is no policy 99: .* holds versions 0 to 1", policy_version=99)
    some = Selection(topics=tuple(topic.name for topic in (*TELEMETRY[1:], DECISIONS)))
    Recorder(tmp_path / "some", recorded.kafka, recorded.names, some).run()
    refused(
        "new.", RecordingError, "does not hold telemetry.execution.kernel_perf", recording=Recording(tmp_path / "some")
    )
    none = Selection(topics=tuple(topic.name for topic in CATALOGUE if topic != DECISIONS))
    Recorder(tmp_path / "none", recorded.kafka, recorded.names, none).run()
    refused("new.", ConfigurationError, "holds no decisions, which name", recording=Recording(tmp_path / "none"))
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "10")
    refused("new.", ConfigurationError, "the recorded windows are 50 wide by step, but TAMIYO_WINDOW_WIDTH is 10")
    assert Topics(recorded.kafka, TopicNames(prefix="new.")).present() == []


def test_a_selection_of_runs_times_and_offsets_is_recorded(recorded: Recorded, tmp_path: Path) -> None:
    def record(name: str, **fields: object) -> Recording:
        Recorder(tmp_path / name, recorded.kafka, recorded.names, Selection(**fields)).run()  # type: ignore[arg-type]
        return Recording(tmp_path / name)

    whole = Recording(recorded.folder)
    run = record("run", runs=(LOAD.run_ids[1],))
    assert {m.key for m in run.messages(SIGNALS)} == {LOAD.run_ids[1].encode()}
    assert [m.offset for m in run.messages(SIGNALS)] == [
        m.offset for m in whole.messages(SIGNALS) if m.key == LOAD.run_ids[1].encode()
    ]
    times = sorted(m.timestamp_ms for m in whole.messages(WINDOWS))
    middle = times[len(times) // 2]
    late = record("late", topics=(WINDOWS.name, "tamiyo.model.topology"), since_ms=middle)
    assert all(m.timestamp_ms >= middle for m in late.messages(WINDOWS))
    assert late.count([WINDOWS]) == sum(time >= middle for time in times)
    assert late.count([topic for topic in CATALOGUE if topic.name == "tamiyo.model.topology"]) == 4  # whole
    early = record("early", topics=(WINDOWS.name,), until_ms=middle)
    assert early.count([WINDOWS]) == sum(time < middle for time in times)
    place = next(f"{m.topic}:{m.partition}" for m in whole.messages(SIGNALS))
    part = record("part", topics=(SIGNALS.name,), offsets={place: (3, 8)})
    assert [m.offset for m in part.messages(SIGNALS, int(place.rpartition(":")[2]))] == [3, 4, 5, 6, 7]
    with pytest.raises(BrokerError, match=r"has no topic .* under the prefix 'nobody.' \(16 of 16 are missing\)"):
        Recorder(tmp_path / "nobody", recorded.kafka, TopicNames(prefix="nobody."), Selection()).run()


def test_a_stopped_recording_can_be_continued(recorded: Recorded, tmp_path: Path) -> None:
    read = 0

    def progress(count: int) -> None:
        nonlocal read
        read += count

    first = Recorder(tmp_path / "r", recorded.kafka, recorded.names, Selection(), on_progress=progress)
    manifest = first.run(lambda: read > 200)
    assert not manifest.complete
    stopped = sum(part.messages for part in manifest.parts)
    assert 200 < stopped < Recording(recorded.folder).count(CATALOGUE)
    assert Recording(tmp_path / "r").count(CATALOGUE) == stopped  # what is recorded can be read
    with pytest.raises(ConfigurationError, match="unfinished recording of another selection"):
        Recorder(tmp_path / "r", recorded.kafka, recorded.names, Selection(runs=("a",))).run()
    assert Recorder(tmp_path / "r", recorded.kafka, recorded.names, Selection()).run().complete
    one, other = Recording(tmp_path / "r"), Recording(recorded.folder)
    for topic in CATALOGUE:
        assert list(one.messages(topic)) == list(other.messages(topic)), topic.name
    with pytest.raises(RecordingError, match="holds a finished recording; choose another folder"):
        Recorder(tmp_path / "r", recorded.kafka, recorded.names, Selection()).run()


def test_ctrl_c_stops_a_replay_and_its_workers(recorded: Recorded, names: TopicNames, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": recorded.kafka.bootstrap_servers,
        "TAMIYO_TOPIC_PREFIX": recorded.names.prefix,
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "tamiyo.streams.cli", "replay", str(recorded.folder), "--prefix", names.prefix]
    process = subprocess.Popen(
        [*command, "--speed", "0.01"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: bool(Topics(recorded.kafka, names, [WINDOWS]).present()))
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130, out
    assert f"`tamiyo discard {names.prefix}` removes its topics" in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []
    assert discard(names.prefix, recorded.kafka, recorded.names) > 0


def until(done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)
