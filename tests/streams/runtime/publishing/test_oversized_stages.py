"""Any stage's output may be too large: nothing is lost in silence, the flow goes on, a redrive does what it can."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tamiyo.schemas import topics
from tamiyo.schemas.codec import encode
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic
from tamiyo.streams.admin.dead_letter import DeadLetter
from tamiyo.streams.headers import KeyValueHeaders
from tamiyo.streams.messages import MADE_OF_ONE_INPUT
from tamiyo.streams.runtime.partition_task import PartitionTask
from tamiyo.streams.runtime.poison import PoisonTracker
from tamiyo.streams.runtime.restore import RestoredState
from tamiyo.streams.settings import GraphSettings, IntakeSettings, KernelSettings, WindowSettings
from tamiyo.streams.stages.base import Stage
from tamiyo.streams.stages.graphs.stage import GraphsStage
from tamiyo.streams.stages.intake.stage import IntakeStage
from tamiyo.streams.stages.kernels.stage import KernelsStage
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.streams.runtime.harness import PARTITION, FakeKafka, Sent, settle
from tests.streams.stages.decisions import bench
from tests.streams.stages.graphs import runs as graph_runs
from tests.streams.stages.kernels.test_stage import decide
from tests.streams.stages.kernels.test_stage import topology as kernel_topology
from tests.streams.stages.rewards import runs as reward_runs
from tests.support.stage_log import FixedView
from tests.support.telemetry import COMPANIONS, DictView, kernel_performance, signal, topology

RUNS = ("large", "small")
Messages = list[tuple[Topic, Record]]


@dataclass
class RefusingKafka(FakeKafka):
    """A publisher under whose limit no output of the run `large` is."""

    refusing: bool = True

    def fits(self, message: KeyValueHeaders, room: int = 0) -> bool:
        names = [name for name, _ in message[2]]
        output = "tamiyo-id" in names and "tamiyo-output" not in names
        return not (self.refusing and output and message[0] == b"large")


@dataclass
class Scene:
    """A stage, and what it is fed, in order."""

    make: Callable[[], Stage]
    messages: Messages
    acknowledged: dict[str, int] = field(default_factory=dict)
    _ends: dict[str, int] = field(default_factory=dict)

    def start(self, kafka: FakeKafka, restored: RestoredState | None = None) -> PartitionTask:
        fake: Any = kafka
        kafka.closed = False
        stage = self.make()
        state = restored or RestoredState({})
        state.positions = {topic.name: 0 for topic in stage.inputs}
        self._ends = dict(state.positions)
        self.acknowledged = {}
        acknowledge = self.acknowledged.__setitem__
        task = PartitionTask(type(stage), PARTITION, kafka.worker, fake, fake, acknowledge, kafka.fail)
        task.begin(stage, state, PoisonTracker())
        return task

    async def feed(self, task: PartitionTask, messages: Messages) -> None:
        for topic, record in messages:
            await self.feed_bytes(task, topic, encode(record))

    async def feed_bytes(self, task: PartitionTask, topic: Topic, value: bytes | None) -> None:
        offset = self._ends[topic.name]
        self._ends[topic.name] += 1
        record = SimpleNamespace(offset=offset, timestamp=0, value=value, headers=[], key=b"run")
        await task.take(topic.name, [record])
        while task.busy:  # noqa: ASYNC110 - a stage computes in a thread, which sets no event
            await asyncio.sleep(0.001)
        await settle()


def intake(_: Path) -> Scene:
    frames: Messages = [
        (topics.KERNEL_PERFORMANCE, kernel_performance(step, run_id=run)) for step in (10, 20) for run in RUNS
    ]
    return Scene(lambda: IntakeStage(PARTITION, IntakeSettings(), {}), frames)


def windows(_: Path) -> Scene:
    signals: Messages = [
        (topics.SIGNALS, signal(source, step, {"health": [0.5]}, run_id=run, layers=["a"]))
        for step in (0, 50, 100, 150)
        for run in RUNS
        for source in COMPANIONS
    ]
    return Scene(lambda: WindowsStage(PARTITION, WindowSettings(idle_timeout_s=0), {}), signals)


def graphs(_: Path) -> Scene:
    made = zip(*(graph_runs.windows(4, run) for run in RUNS), strict=True)
    views: Any = {topics.TOPOLOGY.name: DictView({run: topology(graph_runs.LAYERS, run) for run in RUNS})}
    messages: Messages = [(topics.WINDOWS, window) for pair in made for window in pair]
    return Scene(lambda: GraphsStage(PARTITION, GraphSettings(), views), messages)


def decisions(folder: Path) -> Scene:
    return Scene(
        bench.Bench(folder).make,
        [(topics.GRAPHS, bench.graph(index, run_id=run)) for index in range(5, 8) for run in RUNS],
    )


def kernels(folder: Path) -> Scene:
    settings = KernelSettings(store_url=f"file://{folder}")
    views: Any = {topics.TOPOLOGY.name: FixedView({run: kernel_topology(run_id=run) for run in RUNS})}
    messages: Messages = [
        (topics.DECISIONS, decide(2 * number + place, run_id=run))
        for number in range(2)
        for place, run in enumerate(RUNS)
    ]
    return Scene(lambda: KernelsStage(PARTITION, settings, views), messages)


def rewards(_: Path) -> Scene:
    logs = zip(*(reward_runs.whole_run(30, (4,), run_id=run).messages for run in RUNS), strict=True)
    messages: Messages = [(topics.BY_NAME[each.topic], each.record) for pair in logs for each in pair]
    return Scene(reward_runs.stage, messages)


STAGES = (intake, windows, graphs, decisions, kernels, rewards)


def published(sent: Sequence[Sent]) -> dict[tuple[str, str], bytes | None]:
    """Return the value of each output, by topic and id; one that was published twice fails."""
    found: dict[tuple[str, str], bytes | None] = {}
    for each in sent:
        if "tamiyo-id" in each.headers and "tamiyo-output" not in each.headers:
            key = (each.topic, each.headers["tamiyo-id"])
            assert key not in found, f"{key} was published twice"
            found[key] = each.value
    return found


def dead_letters(sent: Sequence[Sent]) -> list[DeadLetter]:
    return [
        DeadLetter(
            each.topic, PARTITION, place, 0, b"run", each.value, [(n, v.encode()) for n, v in each.headers.items()]
        )
        for place, each in enumerate(sent)
        if "tamiyo-output" in each.headers
    ]


def restored(sent: Sequence[Sent]) -> RestoredState:
    """Return what a restart reads back of the dead letters."""
    state = RestoredState({})
    for each in sent:
        if "tamiyo-output" in each.headers:
            topic, _, offset = each.headers["tamiyo-source"].rsplit(":", 2)
            key = each.headers["tamiyo-output"], each.headers["tamiyo-id"]
            state.oversized.setdefault(key, set()).add((topic, int(offset)))
        elif "tamiyo-id" in each.headers:
            state.published.add((each.topic, each.headers["tamiyo-id"]))
    return state


@pytest.fixture(params=STAGES)
def make_scene(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Scene]:
    # The names of these functions would be taken for fixtures of that name.
    return lambda: request.param(tmp_path)


async def run(scene: Scene, kafka: FakeKafka) -> PartitionTask:
    task = scene.start(kafka)
    await scene.feed(task, scene.messages)
    assert kafka.failed == []
    return task


async def redrive(scene: Scene, task: PartitionTask, letters: Sequence[DeadLetter]) -> None:
    for each in letters:
        if each.sendable:
            await scene.feed_bytes(task, each.topic, each.value)


def test_an_output_that_is_too_large_is_a_dead_letter_and_the_flow_goes_on(make_scene: Callable[[], Scene]) -> None:
    async def act() -> None:
        scene, free = make_scene(), FakeKafka(largest=10**9)
        (await run(scene, free)).close()
        wanted, acknowledged = published(free.sent), dict(scene.acknowledged)
        kafka = RefusingKafka()
        (await run(scene, kafka)).close()
        small, letters = published(kafka.sent), dead_letters(kafka.sent)
        lost = {
            (dict(each.headers)["tamiyo-output"].decode(), dict(each.headers)["tamiyo-id"].decode()) for each in letters
        }
        assert len(letters) == len(lost) == len(wanted) // 2 > 0
        assert small.keys() == wanted.keys() - lost  # nothing else is held up
        assert small.keys() | lost == wanted.keys()
        assert all(scene.acknowledged[topic] >= offset for topic, offset in acknowledged.items())
        for each in letters:
            assert each.reason.startswith("OutputTooLarge: ")
            assert " of run large" in each.reason
            assert "TAMIYO_WORKER_MAX_MESSAGE_BYTES" in each.reason
            assert "max.message.bytes" in each.reason

    asyncio.run(act())


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_redrive_makes_the_output_once_more_or_is_refused(make_scene: Callable[[], Scene], restart: bool) -> None:
    async def act() -> None:
        scene, kafka = make_scene(), RefusingKafka()
        task = await run(scene, kafka)
        letters = dead_letters(kafka.sent)
        outputs = {dict(each.headers)["tamiyo-output"].decode() for each in letters}
        assert {each.sendable for each in letters} == {output in MADE_OF_ONE_INPUT for output in outputs}
        wanted = {dict(each.headers)["tamiyo-id"].decode() for each in letters if each.sendable}
        assert all(("and redrive" in each.reason) == each.sendable for each in letters)
        kafka.refusing = False
        if restart:
            task.close()
            task = scene.start(kafka, restored(kafka.sent))
            await scene.feed(task, scene.messages)  # nothing was committed: all is read again
            assert len(dead_letters(kafka.sent)) == len(letters)
        assert not wanted & {identity for _, identity in published(kafka.sent)}  # nothing appears by itself
        await redrive(scene, task, letters)
        assert kafka.failed == []
        assert {identity for _, identity in published(kafka.sent)} >= wanted
        before = len(published(kafka.sent))
        await redrive(scene, task, letters)  # now they are repeats
        assert len(published(kafka.sent)) == before
        task.close()

    asyncio.run(act())


def test_what_is_still_too_large_when_it_is_redriven_is_a_dead_letter_again(tmp_path: Path) -> None:
    async def act() -> None:
        scene, kafka = intake(tmp_path), RefusingKafka()
        task = await run(scene, kafka)
        first = dead_letters(kafka.sent)
        await redrive(scene, task, first)
        second = dead_letters(kafka.sent)[len(first) :]
        assert [each.value for each in second] == [each.value for each in first]
        sources = [dict(each.headers)["tamiyo-source"] for each in second]
        assert not set(sources) & {dict(each.headers)["tamiyo-source"] for each in first}
        task.close()

    asyncio.run(act())
