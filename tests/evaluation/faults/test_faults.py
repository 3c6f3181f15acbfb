"""Twenty faults in short order on a real Kafka leave no violation; plans, disks and reports."""

import errno
import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from confluent_kafka import Producer

from tamiyo.evaluation.faults import __main__ as program
from tamiyo.evaluation.faults import course as course_module
from tamiyo.evaluation.faults import disk as faults_disk
from tamiyo.evaluation.faults import kinds
from tamiyo.evaluation.faults.course import run
from tamiyo.evaluation.faults.disk import Disk
from tamiyo.evaluation.faults.judge import Violation
from tamiyo.evaluation.faults.kinds import ALL, KINDS, plan, several
from tamiyo.evaluation.faults.report import Course, Injection, read_runs, run_report, summary
from tamiyo.evaluation.faults.services import full_broker_disk
from tamiyo.schemas.client.partition_reader import PartitionReader
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import WINDOWS
from tamiyo.streams.admin.brokers import LocalKafka, kafka_home
from tamiyo.streams.admin.topics import Topics

COMMITTED = Path(__file__).parents[3] / "evaluation" / "results" / "faults.json"


@pytest.mark.kafka
@pytest.mark.timeout(900)  # four minutes on an idle machine
def test_a_fault_of_every_kind(tmp_path: Path) -> None:
    home = kafka_home()
    if home is None:
        pytest.skip("KAFKA_HOME names no unpacked Kafka, and faults need a node of their own")
    registry = os.environ.get("REGISTRY_HOME")
    course = run(
        home, tmp_path, faults=len(ALL), seed=5, workers=2, gap_s=2.0, open_faults=6,
        registry_home=Path(registry) if registry else None,
    )  # fmt: skip
    assert course.violations == []
    happened = Counter(each.kind for each in course.injections)
    assert happened.keys() == {*ALL, "upgrade", "add_partitions"} - course.left_out.keys()
    assert sum(happened[name] for name in ALL) == len(ALL)
    assert "registry_away" not in course.left_out or not registry
    assert all(each.recovery_seconds is not None for each in course.injections)
    assert course.drained
    assert course.counts["different decisions"] == course.counts["different graphs"] > 50


@pytest.mark.kafka
@pytest.mark.timeout(900)
def test_clocks_of_workers_that_are_set_change_nothing(tmp_path: Path) -> None:
    home = kafka_home()
    if home is None:
        pytest.skip("KAFKA_HOME names no unpacked Kafka, and faults need a node of their own")
    course = run(
        home, tmp_path, faults=5, seed=8, workers=2, gap_s=3.0, open_faults=3, kinds=["clock_of_a_worker"]
    )  # fmt: skip
    assert course.violations == []
    set_clocks = [each.what for each in course.injections if each.kind == "clock_of_a_worker"]
    assert len(set_clocks) == 5
    assert {each.endswith("meanwhile") for each in set_clocks} == {True, False}
    assert {"by -" in each for each in set_clocks} == {True, False}
    assert course.drained


def test_a_plan_follows_from_its_seed_and_contains_every_kind() -> None:
    chosen = plan(55, random.Random(3))
    assert chosen == plan(55, random.Random(3)) != plan(55, random.Random(4))
    assert len(chosen) == 55
    assert set(chosen) == set(ALL) == {*KINDS, "several"}
    assert Counter(chosen)["kill_worker"] > Counter(chosen)["full_state"]


@pytest.mark.parametrize(
    ("registry", "release", "expected"),
    [(True, True, {"upgrade"}), (False, True, {"registry_away"}), (False, False, {"registry_away", "upgrade"})],
)
def test_what_is_not_possible_is_left_out_with_a_reason(registry: bool, release: bool, expected: set[str]) -> None:
    assert course_module._left_out(registry, release).keys() == expected


def test_a_step_that_fails_is_a_violation_with_the_output_of_its_command() -> None:
    course = Course(1)
    host: Any = SimpleNamespace(recovered=lambda since: 0.5)

    def fail() -> None:
        program = "print('no run may be live'); raise SystemExit(3)"
        subprocess.run([sys.executable, "-c", program], check=True, text=True, stdout=subprocess.PIPE)

    course_module._step(course, host, "upgrade", 0.0, lambda: "done")
    course_module._step(course, host, "add_partitions", 0.0, fail)
    assert [(each.kind, each.what, each.recovery_seconds) for each in course.injections] == [
        ("upgrade", "done", 0.5), ("add_partitions", "", None),
    ]  # fmt: skip
    (violation,) = course.violations
    assert (violation.kind, violation.where) == ("a fault could not be injected", "add_partitions")
    assert "no run may be live" in violation.what


def test_a_plan_has_only_the_kinds_that_are_possible() -> None:
    possible = [name for name in ALL if name != "registry_away"]
    assert set(plan(55, random.Random(3), possible)) == set(possible)


def test_several_faults_at_once_are_of_the_kinds_that_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    possible = ["storm", "kill_worker", "slow_broker"]
    monkeypatch.setattr(kinds, "KINDS", {name: (lambda scene, rng: "done", 1) for name in KINDS})
    scene: Any = SimpleNamespace(kinds=possible)
    happened = {part.split(":")[0] for seed in range(30) for part in several(scene, random.Random(seed)).split("; ")}
    assert happened == set(possible)


def test_every_other_seed_has_a_registry_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults = Program(monkeypatch, tmp_path)
    monkeypatch.setenv("REGISTRY_HOME", "/registry")
    faults(0, 1, 2)
    assert faults.registries == [Path("/registry"), None, Path("/registry")]
    monkeypatch.delenv("REGISTRY_HOME")
    faults(4)
    assert faults.registries[3:] == [None]


@pytest.mark.kafka
def test_a_broker_whose_disk_is_full_ends_and_has_what_it_acknowledged(tmp_path: Path) -> None:
    home = kafka_home()
    if home is None:
        pytest.skip("KAFKA_HOME names no unpacked Kafka, and the fault needs a node of its own")
    broker = LocalKafka(home)
    kafka, names = KafkaSettings(bootstrap_servers=broker.bootstrap_servers), TopicNames()
    with Disk(broker.data) as disk:
        if not disk.mounted:
            pytest.skip("this process may not mount a file system")
        with broker:
            Topics(kafka, names, [WINDOWS]).create()
            acknowledged: list[bytes] = []

            def produce(timeout_ms: int) -> None:
                producer = Producer(kafka.librdkafka(**{"message.timeout.ms": timeout_ms, "log_level": 0}))
                for number in range(200):
                    producer.produce(
                        WINDOWS.name, b"%d" % number + os.urandom(10_000), partition=0,
                        on_delivery=lambda error, message: acknowledged.append(message.value()) if not error else None,
                    )  # fmt: skip
                producer.flush()

            produce(60_000)
            scene: Any = SimpleNamespace(
                installation=SimpleNamespace(broker=broker), broker=threading.Lock(), logs=disk
            )
            with ThreadPoolExecutor(1) as pool:
                fault = pool.submit(full_broker_disk, scene, random.Random(1))
                while not broker.wait(0.2) and not fault.done():
                    produce(2_000)
                assert "ended by itself" in fault.result()
            produce(60_000)
            with PartitionReader(kafka) as reader:
                found = [each.value() for each in reader.read(reader.ranges(WINDOWS.name))]
    assert len(acknowledged) >= 400
    assert not set(acknowledged) - set(found)


def test_a_file_cannot_be_written_while_its_disk_is_full(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        if not disk.mounted:
            pytest.skip("this process may not mount a file system")
        file = disk.folder / "file"
        with disk.full([]), pytest.raises(OSError, match="No space left"):
            file.write_bytes(bytes(1_000_000))
        file.write_bytes(bytes(1_000_000))
        assert file.stat().st_size == 1_000_000


WRITER = """
import sys
for line in sys.stdin:
    try:
        with open(line.strip(), "wb") as file:
            file.write(bytes(1_000_000))
        print("written", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def test_writers_get_a_file_size_limit_without_the_right_to_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults_disk, "_mount", lambda folder, options: False)
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None

    def write() -> str:
        print(tmp_path / "disk" / "file", file=writer.stdin, flush=True)
        return writer.stdout.readline().strip()  # type: ignore[union-attr]

    with writer, Disk(tmp_path / "disk") as disk:
        assert write() == "written"
        with disk.full([writer.pid]):
            assert write() == str(errno.EFBIG)
        assert write() == "written"
        writer.stdin.close()
    assert disk.means == "RLIMIT_FSIZE of the processes"


class Program:
    """`make faults` whose runs take no time: it records the seeds that it was to run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.seeds: list[int] = []
        self.end: BaseException | None = None
        self.interrupted = False
        self.registries: list[Path | None] = []
        self.report = folder / "report.json"
        monkeypatch.setattr(program, "run", self._run)
        monkeypatch.setattr(program, "required_kafka_home", lambda: folder)
        monkeypatch.setattr(program, "end_by_signal", lambda: None)

    def _run(self, home: Path, folder: Path, *, seed: int, **options: Any) -> Course:
        if self.end is not None and self.seeds:
            raise self.end
        self.seeds.append(seed)
        self.registries.append(options["registry_home"])
        return Course(seed, [Injection("storm", 0.0, recovery_seconds=1.0)], interrupted=self.interrupted)

    def __call__(self, *seeds: int) -> list[int]:
        self.seeds = []
        program.main(seed=list(seeds), report=self.report)
        return self.seeds

    def reported(self) -> list[int]:
        return [each["seed"] for each in json.loads(self.report.read_text())["runs"]]


def test_a_command_given_again_runs_the_seeds_that_its_report_does_not_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    faults = Program(monkeypatch, tmp_path)
    faults.end = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        faults(3, 1, 2)
    assert faults.reported() == [3]
    faults.end = None
    assert faults(3, 1, 2) == [1, 2]
    assert faults.reported() == [1, 2, 3]
    assert faults(1, 2, 3) == []
    assert faults(7) == [7]
    assert faults.reported() == [1, 2, 3, 7]


def test_a_seed_that_was_interrupted_is_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faults = Program(monkeypatch, tmp_path)
    faults.interrupted = True
    assert faults(1, 2) == [1]
    faults.interrupted = False
    assert faults(1, 2) == [1, 2]
    assert faults.reported() == [1, 2]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 2, "runs": []}', '{"format": 1, "runs": [{}]}']
)
def test_a_file_that_is_no_report_is_not_overwritten(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    faults = Program(monkeypatch, tmp_path)
    faults.report.write_text(content)
    with pytest.raises(typer.BadParameter, match="report of faults"):
        faults(1)
    assert faults.seeds == []
    assert faults.report.read_text() == content


def test_the_committed_report_can_be_continued() -> None:
    committed = json.loads(COMMITTED.read_text())
    again = json.loads(json.dumps(summary(read_runs(COMMITTED))))
    assert {key: again[key] for key in ("faults", "graphs", "violations", "counts")} == {
        key: committed[key] for key in ("faults", "graphs", "violations", "counts")
    }


def test_a_report_merges_its_seeds() -> None:
    first, second = Course(1), Course(2)
    first.counts = {"different graphs": 7}
    first.injections = [Injection("storm", 0.0, recovery_seconds=1.0), Injection("storm", 1.0, recovery_seconds=3.0)]
    second.injections = [Injection("kill_worker", 0.0, recovery_seconds=8.0)]
    second.violations = [Violation("a window is missing", "run-1 0..50", "it is not there")]
    reports = [json.loads(json.dumps(summary([run_report(course, "make faults")]))) for course in (first, second)]
    assert [each["seed"] for each in reports] == [1, 2]
    report = summary([run for each in reports for run in each["runs"]])
    assert report["faults"] == 3
    assert report["seed"] == [1, 2]
    assert report["graphs"] == 7
    assert report["counts"] == {"storm": 2, "kill_worker": 1}
    assert report["recovery_seconds"]["storm"] == {"count": 2, "p50": 2.0, "p90": 2.8, "max": 3.0}
    assert report["recovery_seconds"]["all"]["count"] == 3
    assert report["violations"] == [
        {"seed": 2, "kind": "a window is missing", "where": "run-1 0..50", "what": "it is not there"}
    ]
