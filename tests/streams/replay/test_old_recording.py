"""A recording of release 0.1.0 must stay replayable: the same windows, graphs and decisions, apart from explanations.

It holds four simulated runs, one of them killed, decided under two policy versions and several standing orders.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from tamiyo.evaluation.replay.__main__ import Quiet
from tamiyo.schemas.adaptation import AdaptationDecision
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import BY_NAME, CHECKPOINTS, CONTROL, DECISIONS, SIGNALS, TOPOLOGY, WINDOWS, Topic
from tamiyo.streams.messages import Message
from tamiyo.streams.recording.recording import CHECKPOINTS_FOLDER, Recording
from tamiyo.streams.replay.cleanup import discard
from tamiyo.streams.replay.compare import RecordingSide, Side, TopicsSide, compare
from tamiyo.streams.replay.flow import ENVIRONMENT, Flow
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.replay.replayer import Plan, Replayer
from tamiyo.streams.stages.base import Incoming, Output, Reject
from tamiyo.streams.stages.registry import STAGES
from tests.support.recordings import make_recording
from tests.support.stage_log import FixedView

FOLDER = Path(__file__).parents[2] / "data" / "recording-0.1.0"
IGNORED = ["explanation"]
COMPUTED = ("confidence", "uncertainty", "predicted_reward", "value", "log_probability", "entropy")
"""A decision's numbers out of the network: another processor rounds them otherwise, so they are compared as invariant 6
compares propensities."""
TOLERANCE = 1e-5


class Replay:
    """The stages of one partition in this process, fed with its recorded messages in the order of their times."""

    def __init__(self, recording: Recording, flow: Flow, partition: int) -> None:
        self._recording = recording
        self._partition = partition
        self._flow = flow
        topologies = [decode(each.value, TOPOLOGY.record) for each in recording.messages(TOPOLOGY, partition)]
        views = {
            TOPOLOGY.name: FixedView({each.run_id: each for each in topologies}),
            CHECKPOINTS.name: FixedView(),
            CONTROL.name: FixedView(),
        }
        self._stages = [
            stage(partition, STAGES[name].settings(), views)  # from the environment, as in a worker
            for name, stage in flow.stages.items()
        ]
        self._next_offset: dict[str, int] = defaultdict(int)
        self.messages: list[Message] = []

    def run(self) -> list[Message]:
        """Return what the stages publish, the end of the inputs included."""
        for time_ms, message in self._recording.timeline(self._flow.inputs):
            if message.partition == self._partition:
                self._feed(message, time_ms)
        for stage in self._stages:
            self._publish(stage.flush(), 0)
        return self.messages

    def _feed(self, message: Message, time_ms: int) -> None:
        topic = BY_NAME[message.topic]
        record = decode(message.value, topic.record)
        incoming = Incoming(
            topic.name, message.partition, message.offset, time_ms, record, message.value, message.key or b""
        )
        for stage in self._stages:
            if topic in stage.inputs:
                self._publish(stage.feed([incoming]), time_ms)

    def _publish(self, results: Sequence[Output | Reject], time_ms: int) -> None:
        for each in results:
            assert isinstance(each, Output), each.reason
            name = each.topic.name
            key = each.record.run_id.encode()  # type: ignore[attr-defined]
            headers = (("tamiyo-id", each.identity.encode()),)
            message = Message(
                name, self._partition, self._next_offset[name], time_ms, key, encode(each.record), headers
            )
            self._next_offset[name] += 1
            self.messages.append(message)
            self._feed(message, time_ms)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a replay's worker."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TAMIYO_DECISION_RECORDED", str(FOLDER))
    monkeypatch.setenv("TAMIYO_DECISION_CHECKPOINT_URL", f"file://{FOLDER / CHECKPOINTS_FOLDER}")


def assert_as_recorded(replayed: Side, topics: Sequence[Topic]) -> None:
    """Everything recorded was computed again; one run was killed, and the end of its input closes its last window."""
    recording, open_window = Recording(FOLDER), int(WINDOWS in topics)
    ignored = [*IGNORED, *COMPUTED, "probabilities"]
    for topic, found in zip(topics, compare(RecordingSide(recording), replayed, topics, ignore=ignored), strict=True):
        assert (found.same, found.differ, found.left_only) == (recording.count([topic]), 0, 0), found
        assert (found.right_only, found.contradictions) == (0 if topic is SIGNALS else open_window, 0), found


def assert_computed_as_recorded(replayed: Iterable[AdaptationDecision]) -> None:
    """The network's numbers in the decisions are the recorded ones, up to rounding."""
    recorded = {
        each.decision_id: each for message in Recording(FOLDER).messages(DECISIONS) for each in [decoded(message)]
    }
    for again in replayed:
        if (first := recorded.get(again.decision_id)) is None:
            continue  # of the window that the end of the input closed
        for name in COMPUTED:
            assert getattr(again, name) == pytest.approx(getattr(first, name), abs=TOLERANCE), name
        assert again.probabilities.numpy() == pytest.approx(first.probabilities.numpy(), abs=TOLERANCE)


def decoded(message: Message) -> AdaptationDecision:
    decision = decode(message.value, DECISIONS.record)
    assert isinstance(decision, AdaptationDecision)
    return decision


def test_the_recording_is_whole_and_has_what_it_is_kept_for() -> None:
    recording = Recording(FOLDER)
    assert recording.manifest.tamiyo == "0.1.0"
    topics = [BY_NAME[part.topic] for part in recording.manifest.parts]
    recording.verify(topics)
    decisions = [decode(each.value, DECISIONS.record) for each in recording.messages(DECISIONS)]
    assert {each.policy_version for each in decisions} == {0, 1}
    assert len({tuple(each.orders.items()) for each in decisions}) > 2
    assert any(each.proposed.type != "no_op" for each in decisions)


@pytest.mark.parametrize("level", list(ReplaySource))
def test_the_stages_compute_what_was_recorded(level: ReplaySource, tmp_path: Path) -> None:
    recording, flow = Recording(FOLDER), Flow.between(level, ReplayTarget.DECISIONS)
    partitions = {part.partition for part in recording.parts([DECISIONS])}
    messages = [each for number in partitions for each in Replay(recording, flow, number).run()]
    make_recording(tmp_path / "replayed", messages)
    assert_computed_as_recorded(decoded(each) for each in messages if each.topic == DECISIONS.name)
    assert_as_recorded(RecordingSide(Recording(tmp_path / "replayed")), flow.outputs)


@pytest.mark.kafka
@pytest.mark.flow
@pytest.mark.timeout(300)
def test_a_replay_on_kafka_publishes_what_was_recorded(real_kafka: str, names: TopicNames) -> None:
    recording, kafka = Recording(FOLDER), KafkaSettings(bootstrap_servers=real_kafka)
    flow = Flow.between(ReplaySource.TELEMETRY, ReplayTarget.DECISIONS)
    live = TopicNames(prefix="live.")
    replayer = Replayer(recording, Plan(flow, names), kafka, live, observer=Quiet())
    replayer.check()
    assert replayer.run().rejected == {}
    assert_as_recorded(TopicsSide(kafka, names), flow.outputs)
    assert discard(names.prefix, kafka, live) > 0
