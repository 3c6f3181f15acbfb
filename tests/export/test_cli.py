"""`tamiyo export`, and the package without pyarrow."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tamiyo.data import _cli, _sources
from tamiyo.schemas.errors import TamiyoError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.topics import CATALOGUE, DECISIONS, REWARDS, WINDOWS
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.recording.topic_reader import Selection
from tests.export.support import as_messages, record_topics
from tests.export.test_exporting import Interrupted, files
from tests.support.factories import make_window
from tests.support.kafka_log import KafkaLog
from tests.support.recordings import make_recording
from tests.support.runs import decision


def run(*arguments: object) -> Result:
    return CliRunner().invoke(_cli.app, [str(each) for each in arguments], catch_exceptions=True)


def refused(*arguments: object) -> str:
    """Run it; it must end with an error that the command line explains, or a usage error."""
    result = run(*arguments)
    assert result.exit_code != 0
    if isinstance(result.exception, SystemExit):
        return re.sub(r"[\s│]+", " ", result.output)
    assert isinstance(result.exception, TamiyoError), result.exception
    return str(result.exception)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    made = [decision("a"), b"\x1b[31mgarbage"]
    return record_topics(tmp_path / "recording", {DECISIONS: made, WINDOWS: [make_window()]})


def test_decisions_come_with_the_joined_table(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("decisions", "--recording", recording, "--out", out)
    assert result.exit_code == 0, result.output
    assert files(out) == ["decisions.parquet", f"{DECISIONS.name}.parquet"]
    assert pq.read_table(out / "decisions.parquet").num_rows == 1
    text = " ".join(result.output.split())
    assert "1 of 2 messages are no such record and are left out; the first: tamiyo.adaptation.decisions:0:1" in text
    assert "\x1b[31m" not in result.output
    assert "2 files in" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["windows"], [f"{WINDOWS.name}.model.parquet", f"{WINDOWS.name}.parquet"]),
        (["decisions", "--no-joined", "--format", "csv"], [f"{DECISIONS.name}.csv"]),
        (["--joined", "--format", "jsonl"], ["decisions.jsonl"]),
        (["rewards", "--run", "run-1", "--since", "30d", "--until", "2100-01-01"], [f"{REWARDS.name}.parquet"]),
    ],
)
def test_what_is_written(arguments: Sequence[str], expected: list[str], recording: Path, tmp_path: Path) -> None:
    assert run(*arguments, "--recording", recording, "--out", tmp_path / "out").exit_code == 0
    assert files(tmp_path / "out") == expected


def test_the_summary_as_json(recording: Path, tmp_path: Path) -> None:
    result = run("all", "--recording", recording, "--out", tmp_path / "out", "--json")
    found = json.loads(result.stdout)
    assert (found["complete"], found["format"], found["not_recorded"]) == (True, "parquet", [])
    assert len(found["files"]) == len(CATALOGUE) + 3
    assert {each["file"] for each in found["files"]} == set(files(tmp_path / "out"))
    counted = found["topics"][DECISIONS.name]
    assert (counted["messages"], counted["undecodable"], counted["removals"]) == (2, 1, 0)
    assert counted["first_problem"].startswith(f"{DECISIONS.name}:0:1: ")


def test_all_of_a_recording_of_some_topics(tmp_path: Path) -> None:
    selected = Selection(topics=(DECISIONS.name, WINDOWS.name))
    make_recording(tmp_path / "recording", as_messages(DECISIONS, [decision()]), selection=selected)
    result = run("all", "--recording", tmp_path / "recording", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert len(files(tmp_path / "out")) == 4
    assert "not in the recording, so null in the joined table: tamiyo.model.topology" in " ".join(result.output.split())


def test_topics_of_a_broker(kafka: KafkaSettings, names: TopicNames, tmp_path: Path, monkeypatch: Any) -> None:
    Topics(kafka, names).create(partitions=2, replication=1)
    with closing(KafkaLog(kafka, names)) as log:
        log.publish(DECISIONS, [decision(str(number), run_id=f"run-{number}") for number in range(6)])
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", names.prefix)
    arguments = ("-b", kafka.bootstrap_servers, "--out", tmp_path)
    result = run(f"{names.prefix}{DECISIONS.name}", *arguments)
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "decisions.parquet").num_rows == 6


def test_ctrl_c_ends_it_with_130(recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    source = Interrupted(recording, DECISIONS, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(_sources, "RecordingSource", lambda folder: source)
    result = run("windows", "decisions", "--recording", recording, "--out", tmp_path / "out")
    assert result.exit_code == _cli.INTERRUPTED
    assert "stopped; the files above are complete" in result.output
    assert files(tmp_path / "out") == [f"{WINDOWS.name}.model.parquet", f"{WINDOWS.name}.parquet"]


def test_wrong_arguments_are_explained(recording: Path, tmp_path: Path) -> None:
    out = ("--recording", recording, "--out", tmp_path / "out")
    assert "name the topics to export, or `all`, or --joined" in refused(*out)
    assert "did you mean tamiyo.adaptation.decisions" in refused("decisons", *out)
    assert "rejected messages have no type" in refused(f"{DECISIONS.name}.late", *out)
    assert "expected parquet, csv, jsonl, got 'xlsx'" in refused("decisions", "--format", "xlsx", *out)
    assert "--run: expected letters" in refused("decisions", "--run", "../x y", *out)
    assert "--since soon: expected a time" in refused("decisions", "--since", "soon", *out)
    assert "does not lie before --until" in refused("decisions", "--since", "1h", "--until", "2h", *out)
    assert "exclude each other" in refused("decisions", "-b", "h:1", *out)
    assert "is not a recording" in refused("decisions", "--recording", tmp_path)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert "is not empty" in refused("decisions", *out)
    assert run("decisions", "--overwrite", *out).exit_code == 0


def test_names_are_completed() -> None:
    assert _cli.complete_topics("dec") == ["decisions"]
    assert _cli.complete_topics("tamiyo.r") == [REWARDS.name]


def test_help_imports_no_pyarrow() -> None:
    code = "import sys, tamiyo.data._cli; assert not {'pyarrow', 'numpy', 'confluent_kafka'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_pyarrow_the_package_names_its_extra() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import tamiyo.data"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError: tamiyo.data needs pyarrow: pip install 'esper-tamiyo[data]'" in done.stderr


def test_the_package_needs_no_pipeline(tmp_path: Path, recording: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('faust', 'typer', 'rich', 'aiokafka', 'structlog', 'aiohttp', 'torch_geometric'):\n"
        "    sys.modules[name] = None\n"
        "import tamiyo.data\n"
        f"assert tamiyo.data.read('windows', recording={str(recording)!r}).num_rows == 63\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
