"""`tamiyo doctor`: each check, on no broker, on an empty one, and on one with workers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from tamiyo.schemas.client.awaited_producer import AwaitedProducer
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
from tamiyo.schemas.topics import CACHE_HIT_RATES, CHECKPOINTS, EXPERIENCE, SIGNALS
from tamiyo.streams import cli
from tamiyo.streams.admin import doctor, groups
from tamiyo.streams.admin.doctor import Finding, examine
from tamiyo.streams.admin.groups import Membership, StageGroup, inputs
from tamiyo.streams.admin.store_mark import MARK
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.stages.registry import STAGES
from tests.support.kafka_log import KafkaLog

NOWHERE = "127.0.0.1:1"  # nothing listens on port 1
STAGE_FINDINGS = [f"stage {stage}" for stage in STAGES]


@pytest.fixture(autouse=True)
def _environment(names: TopicNames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}/store")
    monkeypatch.setenv("TAMIYO_WORKER_STATE_DIR", f"{tmp_path}/state")


def found(kafka: KafkaSettings, what: str = "") -> list[Finding]:
    """Return the findings, of one check or of all."""
    return [each for each in examine(lambda: kafka) if what in ("", each.what)]


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run `tamiyo doctor`; return its exit status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["tamiyo", "doctor", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().out


def test_without_a_broker_the_rest_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out = run(monkeypatch, capsys, "-b", NOWHERE, "--json")
    states = {each["what"]: each["state"] for each in json.loads(out)}
    assert status == 1
    assert [what for what, state in states.items() if state != "ok"] == ["broker"]
    assert {"settings", "state directory", "store", "registry"} < states.keys()
    assert not {"topics", "learner", *STAGE_FINDINGS} & states.keys()
    assert not (tmp_path / "state").exists()


def test_wrong_settings_of_the_broker_are_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_KAFKA_SECURITY_PROTOCOL", "ROT13")
    status, out = run(monkeypatch, capsys)
    assert status == 1
    assert "problem settings: TAMIYO_KAFKA_SECURITY_PROTOCOL=ROT13 is wrong" in out
    assert "problem broker: not checked: its settings are wrong, see above" in out
    assert "ok state directory" in out
    status, out = run(monkeypatch, capsys, "-b", "nonsense")
    assert status == 1
    assert "nonsense" in out


def test_an_empty_cluster_is_one_line(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = run(monkeypatch, capsys, "-b", kafka.bootstrap_servers)
    assert status == 1
    lines = out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if line.startswith("problem"))
    assert lines[place] == "problem topics: no topic of this installation exists"
    assert "`tamiyo topics create` creates them" in lines[place + 1]
    assert "stage" not in out
    assert len(lines) < 25


def test_topics_of_another_prefix_are_named(kafka: KafkaSettings, names: TopicNames) -> None:
    Topics(kafka, names).touch()
    other = TopicNames(prefix=f"{names.prefix}other.")
    (finding,) = Topics(kafka, other).findings()
    assert f"is TAMIYO_TOPIC_PREFIX={other.prefix} right?" in finding.advice


def test_warnings_leave_the_exit_status_0(
    kafka: KafkaSettings, names: TopicNames, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Topics(kafka, names).touch()
    status, out = run(monkeypatch, capsys, "-b", kafka.bootstrap_servers)
    assert "warning broker" in out
    assert status == 0


def test_the_committed_lag_of_each_input(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    Topics(kafka, names).touch()
    for topic, count in ((SIGNALS, 3), (CACHE_HIT_RATES, 2)):
        kafka_log.publish_bytes(topic, [(b"run", b"x")] * count)
    commit(kafka, names, "intake", CACHE_HIT_RATES.name)
    details = {each.what: each.detail for each in found(kafka)}
    assert details["stage windows"] == "committed lag 3 records"
    full = names.full(CACHE_HIT_RATES.name)
    assert details["stage intake"] == f"committed lag 1 records ({full} 1)"
    assert "open windows" in details["lag"]


def commit(kafka: KafkaSettings, names: TopicNames, stage: str, topic: str) -> None:
    """Commit the first record of the partition that has one."""
    settings = {"group.id": names.full(STAGES[stage].group), "auto.offset.reset": "earliest"}
    with closing(Consumer(kafka.librdkafka(**settings, **{"enable.auto.commit": False}))) as consumer:
        consumer.subscribe([names.full(topic)])
        deadline = time.monotonic() + 30
        while (message := consumer.poll(1.0)) is None:
            assert time.monotonic() < deadline
        consumer.commit(message, asynchronous=False)


def test_inputs_are_those_of_the_stages() -> None:
    for name, entry in STAGES.items():
        assert set(inputs(name)) == set(entry.load().inputs), name


LAGGING = StageGroup("windows", "tamiyo_windows", {"tamiyo.health.signals": 5})
IDLE = StageGroup("windows", "tamiyo_windows", {"tamiyo.health.signals": 0})


@pytest.mark.parametrize(
    ("group", "membership", "state", "words"),
    [
        (IDLE, Membership(2), "ok", "2 workers; committed lag 0 records"),
        (LAGGING, Membership(1), "ok", "1 worker; committed lag 5 records"),
        (IDLE, Membership(), "warning", "no worker is in its group tamiyo_windows"),
        (LAGGING, Membership(), "problem", "no worker is in its group tamiyo_windows; committed lag 5 records"),
        (IDLE, Membership(1, False, [("t", 3)]), "problem", "nobody has t/3"),
        (IDLE, Membership(1, True, [("t", 3)]), "warning", "being assigned"),
        (LAGGING, BrokerError("Group authorization failed"), "warning", "Group authorization failed; committed lag 5"),
        (LAGGING, None, "ok", "committed lag 5 records"),
    ],
)
def test_members_and_lag_of_a_group(
    group: StageGroup, membership: Membership | BrokerError | None, state: str, words: str
) -> None:
    finding = doctor._group(group, membership)
    assert (finding.what, finding.state) == ("stage windows", state)
    assert words in finding.detail
    assert bool(finding.advice) == (state != "ok")


def test_a_state_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_WORKER_STATE_DIR", "/proc/tamiyo")
    (finding,) = found(KafkaSettings(bootstrap_servers=NOWHERE), "state directory")
    assert finding.state == "problem"
    assert "TAMIYO_WORKER_STATE_DIR" in finding.advice


def test_a_store_of_another_installation(kafka: KafkaSettings, tmp_path: Path) -> None:
    folder = tmp_path / "store" / "kernels"
    folder.mkdir(parents=True)
    (folder / MARK).write_text(json.dumps({"topic_prefix": "foreign.", "cluster_id": None}))
    marks = found(kafka, "store's mark")
    assert [(each.state, "foreign." in each.detail) for each in marks] == [("problem", True), ("ok", False)]


def test_stores_of_their_own_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_LEARNER_CHECKPOINT_URL", "file:///proc/none")
    *fine, wrong = found(KafkaSettings(bootstrap_servers=NOWHERE), "store")
    assert {each.state for each in fine} == {"ok"}
    assert (wrong.state, "TAMIYO_LEARNER_CHECKPOINT_URL" in wrong.advice) == ("problem", True)


def test_a_learner_that_never_released(kafka: KafkaSettings, names: TopicNames) -> None:
    Topics(kafka, names).touch()

    def state(deciding: bool) -> str:
        (finding,) = doctor._learner(kafka, names, embedded=True, deciding=deciding)
        return finding.state

    assert (state(False), state(True)) == ("warning", "problem")


def test_a_frozen_learner(kafka: KafkaSettings, names: TopicNames, kafka_log: KafkaLog) -> None:
    Topics(kafka, names).touch()
    release(kafka, names)
    (finding,) = found(kafka, "learner")
    assert (finding.state, "version 3 was announced at 1970-01-01 00:00:01+00:00" in finding.detail) == ("ok", True)
    release(kafka, names, policy_orders_key("tamiyo"), frozen=True)
    (finding,) = found(kafka, "learner")
    assert (finding.state, finding.detail.startswith("it is frozen")) == ("warning", True)


def release(kafka: KafkaSettings, names: TopicNames, key: str = "tamiyo", **fields: Any) -> None:
    """Announce version 3, which has learned from the first experience of partition 0."""
    record = PolicyCheckpoint(
        name="tamiyo",
        version=3,
        time_ms=1_000,
        status=CheckpointStatus.RELEASED,
        file="policy-3",
        checksum="",
        size_bytes=1,
        feature_version=1,
        blueprints=[],
        offsets={"0": 1},
        **fields,
    )
    producer = AwaitedProducer(kafka, timeout_s=20)
    producer.produce(names.full(CHECKPOINTS.name), encode(record), key)
    producer.flush()


@pytest.mark.kafka
def test_a_learner_that_learns_nothing_from_what_waits(
    real_kafka: str, names: TopicNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO_LEARNER_FRESH_BATCH", "3")
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names).create(partitions=1)
    release(kafka, names)
    now_ms = time.time_ns() // 1_000_000

    def experiences(count: int, age_s: int) -> Finding:
        producer = AwaitedProducer(kafka, timeout_s=20)
        for _ in range(count):
            producer.produce(names.full(EXPERIENCE.name), b"x", "run", partition=0, timestamp_ms=now_ms - age_s * 1_000)
        producer.flush()
        (finding,) = found(kafka, "learner")
        return finding

    assert experiences(3, 1_200).state == "ok"  # the first was learned from, and 2 are no batch
    assert experiences(5, 0).state == "ok"  # they are new
    assert (experiences(0, 0).detail).endswith("7 experiences since")
    monkeypatch.setenv("TAMIYO_LEARNER_FRESH_BATCH", "2")
    late = experiences(0, 0)
    assert late.state == "warning"
    assert "2 of them wait for more than 10 minutes" in late.detail


@pytest.mark.kafka
def test_groups_of_a_real_worker_and_of_one_that_has_not_everything(
    real_kafka: str, names: TopicNames, intake: Callable[[KafkaSettings], None]
) -> None:
    kafka = KafkaSettings(bootstrap_servers=real_kafka)
    Topics(kafka, names).create(partitions=2)
    listed = groups.stage_groups(kafka, names)
    before = groups.memberships(kafka, listed)["intake"]
    assert isinstance(before, Membership)
    assert (before.members, len(before.unassigned)) == (0, 2 * len(inputs("intake")))
    intake(kafka)
    await_state(kafka, "stage intake", "ok")
    (finding,) = found(kafka, "stage intake")
    assert finding.detail == "1 worker; committed lag 0 records"

    # A consumer of one of two inputs only.
    settings = {"group.id": names.full(STAGES["decisions"].group)}
    with closing(Consumer(kafka.librdkafka(**settings))) as consumer:
        consumer.subscribe([names.full("tamiyo.model.graphs")])
        finding = await_state(kafka, "stage decisions", "problem", consumer)
    assert "1 worker, but nobody has " in finding.detail
    assert names.full("tamiyo.adaptation.outcomes/0") in finding.detail


def await_state(kafka: KafkaSettings, what: str, state: str, consumer: Consumer | None = None) -> Finding:
    """Check again and again until a finding has a state."""
    deadline = time.monotonic() + 60
    while True:
        if consumer is not None:
            consumer.poll(0.5)
        (finding,) = found(kafka, what)
        if finding.state == state:
            return finding
        assert time.monotonic() < deadline, finding


@pytest.fixture
def intake(names: TopicNames, tmp_path: Path) -> Iterator[Callable[[KafkaSettings], None]]:
    """Start a worker of the intake stage, as a process."""
    started: list[subprocess.Popen[bytes]] = []

    def start(kafka: KafkaSettings) -> None:
        environment = {**os.environ, "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "tamiyo.streams.cli", "worker", "--stage", "intake", "--no-supervise"]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    yield start
    for process in started:
        process.kill()
        process.wait()
