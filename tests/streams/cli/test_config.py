"""Settings on the command line: `tamiyo config`, `--config`, and processes that refuse wrong ones at the start."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.settings import CONFIG
from tests.streams.cli.test_cli import NOWHERE, run

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TAMIYO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(CONFIG, "")  # restored after the test: --config sets it


def process(*arguments: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Run `tamiyo` as a process of its own; return its exit status and what it printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "tamiyo.streams.cli", *arguments],
        env={**os.environ, "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": NOWHERE, **environment},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (
            ["worker"],
            {"TAMIYO_WINDOW_WIDTH": "-3", "TAMIYO_GRAPH_MAX_HELD": "0"},
            ["TAMIYO_WINDOW_WIDTH=-3", "int, >= 1", "TAMIYO_WINDOW_WIDTH=50", "TAMIYO_GRAPH_MAX_HELD=0"],
        ),
        (
            ["worker", "--stage", "windows"],
            {"TAMIYO_WORKER_TICK_MS": "1e400", "TAMIYO_LOG_LEVEL": "loud", "TAMIYO_SUPERVISOR_STOP_TIMEOUT_S": "nan"},
            ["TAMIYO_WORKER_TICK_MS=1e400", "TAMIYO_LOG_LEVEL=loud", "TAMIYO_SUPERVISOR_STOP_TIMEOUT_S=nan"],
        ),
        (["worker", "--no-supervise"], {"TAMIYO_WATCHDOG_LOOP_S": "\udcff"}, ["TAMIYO_WATCHDOG_LOOP_S="]),
        (
            ["worker"],
            {"TAMIYO_WORKER_SHUTDOWN_TIMEOUT_S": "14"},
            ["TAMIYO_SUPERVISOR_STOP_TIMEOUT_S=15", "TAMIYO_WORKER_SHUTDOWN_TIMEOUT_S=14", "at least 2 s above"],
        ),
        (["learner"], {"TAMIYO_LEARNER_GATES": '["taste"]'}, ["TAMIYO_LEARNER_GATES=", "divergence"]),
        (["learner"], {"TAMIYO_REGISTRY_TIMEOUT_S": "99"}, ["TAMIYO_REGISTRY_TIMEOUT_S=99"]),
        (["--config", "absent.toml", "worker"], {}, ["absent.toml", "cannot be read"]),
    ],
)
def test_wrong_settings_end_a_process_with_status_1_before_it_is_supervised(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    status, printed = process(*arguments, folder=tmp_path, **environment)
    assert status == 1, printed
    for each in words:
        assert each in printed
    assert "Traceback" not in printed
    assert "restarting" not in printed


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["worker", "--stage", "intake"], {"TAMIYO_WORKER_STATE_DIR": "/proc/x"}, "TAMIYO_WORKER_STATE_DIR=file:///proc/x"),
        (["worker", "--stage", "kernels"], {"TAMIYO_STORE_URL": "file:///proc/x"}, "TAMIYO_STORE_URL=file:///proc/x/kernels"),
        (["worker", "--stage", "kernels"], {"TAMIYO_KERNEL_STORE_URL": "what://x"}, "TAMIYO_KERNEL_STORE_URL: what://x"),
        (["worker", "--stage", "decisions"], {"TAMIYO_DECISION_RECORDED": "/x"}, "TAMIYO_DECISION_RECORDED=/x"),
        (["learner"], {"TAMIYO_STORE_URL": "file:///proc/x"}, "TAMIYO_STORE_URL=file:///proc/x/checkpoints"),
        (["learner"], {"TAMIYO_LEARNER_CHECKPOINT_URL": "what://x"}, "TAMIYO_LEARNER_CHECKPOINT_URL: what://x"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_found_at_the_start(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    status, printed = process(*arguments, folder=tmp_path, **environment)
    assert status == 1, printed
    assert words in printed
    assert "restarting" not in printed
    assert "Traceback" not in printed


def test_a_host_that_is_no_name_is_a_wrong_setting(tmp_path: Path, kafka: KafkaSettings, names: TopicNames) -> None:
    from tamiyo.streams.admin.topics import Topics

    Topics(kafka, names).create()
    status, printed = process(
        "worker", "--stage", "intake", folder=tmp_path, TAMIYO_KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        TAMIYO_TOPIC_PREFIX=names.prefix, TAMIYO_WORKER_HTTP_HOST="a..b",
    )  # fmt: skip
    assert (status, "Traceback" in printed) == (1, False), printed
    assert "cannot listen on a..b:0" in printed
    assert "TAMIYO_WORKER_HTTP_HOST" in printed


@pytest.mark.parametrize(("flag", "style"), [("json", "json"), ("TEXT", "text")])
def test_unknown_variables_and_the_format_of_logs(tmp_path: Path, flag: str, style: str) -> None:
    status, printed = process(
        "worker", "--no-supervise", "--stage", "intake", folder=tmp_path, TAMIYO_WINDOW_WIDHT="5",
        TAMIYO_LOG_FORMAT=flag, TAMIYO_WORKER_STARTUP_TIMEOUT_S="0.5",
    )  # fmt: skip
    assert status == 1, printed
    [line] = [line for line in printed.splitlines() if "WIDHT" in line]
    assert "did you mean TAMIYO_WINDOW_WIDTH?" in line
    assert line.startswith("{") == (style == "json")


def test_the_level_of_logs(tmp_path: Path) -> None:
    _, printed = process(
        "worker", "--no-supervise", "--stage", "intake", folder=tmp_path, TAMIYO_WINDOW_WIDHT="5",
        TAMIYO_LOG_LEVEL="error", TAMIYO_WORKER_STARTUP_TIMEOUT_S="0.5",
    )  # fmt: skip
    assert "WIDHT" not in printed
    assert "worker cannot start" in printed


def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> Mapping[str, dict[str, object]]:
    """Return what `tamiyo ARGUMENTS --json` shows, by variable."""
    assert run(monkeypatch, *arguments, "--json") == 0
    return {each["variable"]: each for each in json.loads(capsys.readouterr().out)}


def test_config_show_has_every_value_and_its_origin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tamiyo.toml"
    file.write_text("[window]\nwidth = 20\ngrace = 3\n")
    monkeypatch.setenv("TAMIYO_WINDOW_GRACE", "4")
    found = show(monkeypatch, capsys, "--config", str(file), "config", "show", "--changed")
    assert [tuple(each.values()) for each in found.values()] == [
        ("TAMIYO_WINDOW_WIDTH", "20", "file", True),
        ("TAMIYO_WINDOW_GRACE", "4", "environment", True),
    ]
    assert len(show(monkeypatch, capsys, "config", "show")) > 100


def test_a_flag_wins_over_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tamiyo.toml"
    file.write_text('[kafka]\nbootstrap_servers = "127.0.0.1:2"\n[command]\npatience_s = 0.1\n')
    assert run(monkeypatch, "--config", str(file), "topics", "check") == 1
    assert "at 127.0.0.1:2" in capsys.readouterr().err
    assert run(monkeypatch, "--config", str(file), "topics", "check", "-b", NOWHERE) == 1
    assert f"at {NOWHERE}" in capsys.readouterr().err


def test_the_file_is_checked_before_any_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tamiyo.toml"
    file.write_text("[windows]\nwidth = 20\n[learner]\ngama = 1\n")
    assert run(monkeypatch, "--config", str(file), "lab", "tasks") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"tamiyo: {file}, line 1: there is no table [windows]; did you mean window?",
        f"tamiyo: {file}, line 4: [learner] has no setting gama; did you mean gamma?",
    ]


def test_children_of_a_process_read_the_same_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tamiyo.toml").write_text("[window]\nwidth = 20\n")
    monkeypatch.chdir(tmp_path)
    show(monkeypatch, capsys, "--config", "tamiyo.toml", "config", "show")
    status, printed = process("config", "show", "--changed", folder=ROOT)
    assert status == 0
    assert "TAMIYO_WINDOW_WIDTH" in printed


def test_config_show_as_a_table_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_STORE_URL", "file:///" + "long/" * 40)
    monkeypatch.setenv("TAMIYO_NONSENSE_NAME", "1")
    assert run(monkeypatch, "config", "show", "--changed") == 0
    captured = capsys.readouterr()
    assert "long/" * 40 in captured.out
    assert "TAMIYO_NONSENSE_NAME is no setting" in captured.err


def test_config_reference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "-3")  # the reference helps to correct it
    assert run(monkeypatch, "config", "reference") == 0
    assert "TAMIYO_WINDOW_WIDTH\n    int, >= 1; default: 50\n    Width of a window" in capsys.readouterr().out
    found = show(monkeypatch, capsys, "config", "reference")
    assert found["TAMIYO_WINDOW_WIDTH"] == {
        "variable": "TAMIYO_WINDOW_WIDTH", "table": "window", "key": "width", "type": "int, >= 1", "default": "50",
        "meaning": "Width of a window, in the clock's unit",
    }  # fmt: skip
    assert run(monkeypatch, "config", "reference", "--toml") == 0
    assert "[window]\n" in capsys.readouterr().out


def test_config_show_names_wrong_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "-3")
    assert run(monkeypatch, "config", "show") == 1
    assert "TAMIYO_WINDOW_WIDTH=-3 is wrong" in capsys.readouterr().err


def test_doctor_lists_wrong_settings_and_unknown_variables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}")
    monkeypatch.setenv("TAMIYO_WINDOW_WIDTH", "-3")
    monkeypatch.setenv("TAMIYO_WINDOW_WIDHT", "3")
    assert run(monkeypatch, "doctor", "-b", NOWHERE) == 1
    out = capsys.readouterr().out
    assert "problem settings: TAMIYO_WINDOW_WIDTH=-3 is wrong" in out
    assert (
        "warning settings: TAMIYO_WINDOW_WIDHT is no setting of this version; did you mean TAMIYO_WINDOW_WIDTH?" in out
    )
