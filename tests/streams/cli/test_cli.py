"""The command line: every command has help with examples, and wrong input gets one clear line."""

import json
import logging
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from tamiyo.schemas.kafka import KafkaSettings
from tamiyo.schemas.topics import CATALOGUE
from tamiyo.streams import cli
from tamiyo.streams.cli.dlq import RESULTS
from tamiyo.streams.stages.registry import STAGES

NOWHERE = "127.0.0.1:1"  # nothing listens on port 1


@pytest.fixture(autouse=True)
def _short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_COMMAND_PATIENCE_S", "0.3")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["tamiyo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def commands() -> list[tuple[str, ...]]:
    """Return every command's path."""
    group = typer.main.get_command(cli.app)
    return [
        (name, *sub)
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        for sub in ([(inner,) for inner in command.commands] if hasattr(command, "commands") else [()])
    ]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *command, "--help") == 0
    out = capsys.readouterr().out
    assert "Example" in out
    assert f"tamiyo {' '.join(command)}" in " ".join(out.split())


WITHOUT_RESULT = {("broker",), ("worker",), ("learner",), ("watch",)}
ALWAYS_JSON = {("tail",), ("train",)}  # tail has --table


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_with_a_result_has_json(command: tuple[str, ...]) -> None:
    found: Any = typer.main.get_command(cli.app)
    for name in command:
        found = found.commands[name]
    expected = command not in WITHOUT_RESULT | ALWAYS_JSON
    assert any("--json" in parameter.opts for parameter in found.params) == expected


@pytest.mark.parametrize("command", sorted({(), *(each[:1] for each in commands()), *commands()}), ids=" ".join)
def test_h_is_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *command, "-h") == 0
    short = capsys.readouterr().out
    assert run(monkeypatch, *command, "--help") == 0
    assert short == capsys.readouterr().out
    assert "Usage" in short


def test_the_catalogue_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", "a-long-prefix-of-an-installation.")
    assert run(monkeypatch, "topics", "list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(CATALOGUE)
    assert rows[0]["topic"] == "a-long-prefix-of-an-installation.telemetry.execution.kernel_performance"
    assert rows[0]["read_by"] == ["intake"]


def test_progress_is_not_on_standard_output_with_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, kafka: KafkaSettings
) -> None:
    """Record, compare and create print JSON alone."""
    monkeypatch.setenv("TAMIYO_TOPIC_PREFIX", f"{tmp_path.name}.".replace("_", "-"))
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}/store")
    server = ("-b", kafka.bootstrap_servers, "--json")

    def printed(*arguments: str, status: int = 0) -> Any:
        assert run(monkeypatch, *arguments, *server) == status
        return json.loads(capsys.readouterr().out)

    assert len(printed("topics", "create")["created"]) == 3 * len(CATALOGUE)
    assert printed("topics", "create")["created"] == []
    recorded = printed("record", str(tmp_path / "one"))
    assert (recorded["complete"], recorded["messages"]) == (True, 0)
    compared = printed("diff", str(tmp_path / "one"), str(tmp_path / "one"), status=1)  # nothing to compare
    assert {each["same"] for each in compared} == {0}
    assert printed("dlq", "redrive") == {"dry_run": False, "selected": [], "results": dict.fromkeys(RESULTS, 0)}
    assert printed("dlq", "list") == []
    assert printed("topics", "check") == []
    refused = printed("discard", "nothing.")
    assert refused == {"prefix": "nothing.", "removed": 0}


def test_all_commands_exist() -> None:
    wanted = {"demo", "broker", "worker", "learner", "train", "tail", "watch", "inspect", "doctor", "plan"}
    wanted |= {"record", "replay", "diff", "discard", "evaluate", "export"}
    assert {path[0] for path in commands()} == wanted | {
        "topics",
        "schemas",
        "dlq",
        "lab",
        "policy",
        "runs",
        "config",
        "control",
    }
    assert {path[1] for path in commands() if path[0] == "dlq"} == {"list", "show", "redrive"}
    assert {path[1] for path in commands() if path[0] == "control"} == {
        "show", "pause", "resume", "dry-run", "protect", "clear"
    }  # fmt: skip
    assert {path[1] for path in commands() if path[0] == "policy"} == {"list", "show", "pin", "rollback", "freeze"}
    assert {path[1] for path in commands() if path[0] == "topics"} == {"create", "list", "check", "grow", "acls"}
    assert {path[1] for path in commands() if path[0] == "runs"} == {"list", "forget"}
    assert {path[1] for path in commands() if path[0] == "lab"} == {"tasks", "run", "twins", "traffic", "compare"}
    assert {path[1] for path in commands() if path[0] == "config"} == {"show", "reference"}
    assert {path[1] for path in commands() if path[0] == "schemas"} == {"register", "check"}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("tail tamiyo.rew", ["tamiyo.rewards", "tamiyo.rewards.dlq", "tamiyo.rewards.late"]),
        ("dlq show tamiyo.control.", ["tamiyo.control.dlq", "tamiyo.control.late"]),
        ("record one --topic tamiyo.rew", ["tamiyo.rewards"]),
        ("diff a b --topic tamiyo.rew", ["tamiyo.rewards"]),
        ("worker --stage ", list(STAGES)),
        ("topics acls --role op", ["operator"]),
        ("topics acls --format str", ["strimzi"]),
        ("demo --task mnist", ["mnist1d", "mnist5k"]),
        ("train --task d", ["digits"]),
        ("lab run mnist5k_", ["mnist5k_flat", "mnist5k_few"]),
        ("lab compare --tasks digits,cha", ["digits,chars", "digits,charconv"]),
        ("lab run digits --policy greedy", ["greedy_growth", "greedy_counterfactual"]),
        ("topics gr", ["grow"]),
    ],
)
def test_completion(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, expected: list[str]
) -> None:
    asked = {
        "_TAMIYO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"tamiyo {typed}",
        "COMP_CWORD": f"{typed.count(' ') + 1}",
    }
    for name, value in {**asked, "TAMIYO_KAFKA_BOOTSTRAP_SERVERS": NOWHERE}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.app(prog_name="tamiyo")
    assert not ended.value.code
    assert capsys.readouterr().out.split() == expected


def test_completion_imports_nothing_heavy() -> None:
    program = (
        "from tamiyo.streams.cli import options, training\n"
        "from tamiyo.evaluation.lab.cli import arguments\n"
        "import sys\n"
        "modules = (options, training, arguments)\n"
        "completions = [each for module in modules for name, each in vars(module).items() if name[:9] == 'complete_']\n"
        "assert len(completions) == 7, completions\n"
        "assert all(each('') for each in completions)\n"
        "print([name for name in ('torch', 'faust', 'aiokafka', 'scipy', 'pandas') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"tamiyo {version('esper-tamiyo')}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["demo", "--task", "imagenet"], 1, "choose from mnist1d, digits, mnist5k"),
        (["demo", "--steps", "0"], 2, "greater than or equal to 1"),
        (["demo", "--seed", "-1"], 2, "greater than or equal to 0"),
        (["demo", "--runs", "many"], 2, "valid integer"),
        (["demo", "--report", "/no/such/folder/report.json"], 1, "there is no folder /no/such/folder"),
        (
            ["train", "--report", "/no/such/folder/x"],
            1,
            "--report /no/such/folder/x: there is no folder /no/such/folder",
        ),
        (["train", "--report", "/proc/x"], 1, "--report /proc/x: the folder /proc cannot be written"),
        (["train", "--report", "."], 1, "--report .: . is a folder"),
        (["record", "/proc/x"], 1, "FOLDER /proc/x: the folder /proc cannot be written"),
        (
            ["replay", "--topics", "--prefix", "r.", "--save", "/proc/x/y"],
            1,
            "--save /proc/x/y: the folder /proc cannot",
        ),
        (["worker", "--stage", "coffee"], 1, "there is no stage 'coffee'; choose from intake"),
        (["worker", "--http-port", "70000"], 2, "less than or equal to 65535"),
        (["tail", "no.such.topic"], 1, "no topic 'no.such.topic' in the catalogue"),
        (["topics", "check", "-b", NOWHERE], 1, f"no broker is reachable at {NOWHERE}"),
        (["schemas", "check"], 1, "set TAMIYO_REGISTRY_URL"),
        (
            ["schemas", "register", "--url", f"http://{NOWHERE}"],
            1,
            f"registry at http://{NOWHERE} gives no valid response",
        ),
        (["schemas", "register", "--url", "ftp://registry"], 1, "must begin with http:// or https://"),
        (["schemas", "register", "--url", "http://me:secret@registry"], 1, "must not contain credentials"),
        (["doctor", "-b", NOWHERE], 1, "set TAMIYO_KAFKA_BOOTSTRAP_SERVERS"),
        (["topics", "acls", "--role", "coffee"], 1, "there is no role 'coffee'; choose from intake"),
        (["topics", "acls", "--principal", "it's"], 1, "must be like User:{role}"),
        (["train", "--run-id", "a b"], 1, "--run-id: expected letters"),
        (["tail", "tamiyo.rewards", "--run", ""], 1, "--run: expected letters"),
        (["record", "new", "--run", "ok", "--run", "/x"], 1, "--run: expected letters"),
        (["control", "pause", "run 1\n", "-b", NOWHERE], 1, r"'run 1\n' is not a run_id: expected up to 200 letters"),
        (["control", "pause", "-b", NOWHERE], 1, "name the run, or give --all for all runs"),
        (["control", "clear", "run-1", "--all", "-b", NOWHERE], 1, "give --all for all runs, not both"),
        (["control", "show", "run-1", "--all", "-b", NOWHERE], 1, "give --all for all runs, not both"),
        (["control", "protect", "run-1", "-b", NOWHERE], 1, "name the layers to protect with --layer"),
        (["control", "protect", "run-1", "--layer", "a", "--remove", "a"], 1, "given to --layer and to --remove"),
        (["control", "--paused"], 2, "No such option: --paused"),
        (["control", "run-1"], 2, "No such command 'run-1'"),
        (["record", "new", "-b", NOWHERE], 1, f"no broker is reachable at {NOWHERE}"),
        (["record", "new", "--topic", "coffee"], 1, "no topic 'coffee' in the catalogue"),
        (["record", "new", "--since", "yesterday"], 1, "--since yesterday: expected a time like 2026-05-01T10:00"),
        (["record", "new", "--since", "2026-05-02", "--until", "2026-05-01"], 1, "does not lie before --until"),
        (["record", "new", "--offsets", "tamiyo.rewards=5"], 1, "expected TOPIC:PARTITION=FIRST-LAST"),
        (["record", "new", "--offsets", "tamiyo.rewards:0=5-4"], 1, "FIRST is greater than LAST"),
        (["record", "new", "--offsets", "coffee:0=5-"], 1, "no topic 'coffee' in the catalogue"),
        (["replay", "--prefix", "r."], 1, "give a recording's folder, or --topics"),
        (
            ["replay", ".", "--prefix", "r.", "--run", "a"],
            1,
            "--run selects from topics; a recording is replayed whole",
        ),
        (["replay", ".", "--prefix", "r."], 1, "is not a recording: it has no manifest.json"),
        (["replay", ".", "--prefix", "r.", "--speed", "fast"], 1, "--speed fast: expected max, or a multiple"),
        (["replay", ".", "--prefix", "r.", "--speed", "0"], 1, "--speed 0: expected max"),
        (
            ["replay", ".", "--prefix", "r.", "--from", "graphs", "--to", "windows"],
            1,
            "no stage lies between graphs and",
        ),
        (["replay", ".", "--prefix", "r.", "--save", "."], 1, "--save . exists already"),
        (["replay", ".", "--prefix", "r.", "--workers", "65"], 2, "less than or equal to 64"),
        (["dlq", "list", "-b", NOWHERE], 1, f"no broker is reachable at {NOWHERE}"),
        (["policy", "list", "-b", NOWHERE], 1, f"no broker is reachable at {NOWHERE}"),
        (["dlq", "show", "coffee"], 1, "no topic 'coffee' in the catalogue"),
        (["dlq", "redrive", "tamiyo.rewards", "--at", "5"], 1, "--at 5: expected PARTITION:OFFSET"),
        (["dlq", "show", "--at", "0:5"], 1, "--at needs exactly one topic"),
        (["diff", "nowhere", "."], 1, "there is no folder nowhere"),
        (["discard", ""], 1, "the prefix '' is the installation's own"),
    ],
)
def test_wrong_input_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: object,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.setenv("TAMIYO_STORE_URL", f"file://{tmp_path}")
    monkeypatch.chdir(str(tmp_path))
    assert run(monkeypatch, *arguments) == status
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert words in shown
    assert "Traceback" not in shown


def test_commands_report_each_failed_connection_and_give_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_COMMAND_PATIENCE_S", "3")
    began = time.monotonic()
    assert run(monkeypatch, "topics", "check", "-b", NOWHERE) == 1
    assert 2.5 < time.monotonic() - began < 15
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"tamiyo: no connection to Kafka at {NOWHERE} yet (")
    assert last.startswith(f"tamiyo: no broker is reachable at {NOWHERE}: ")


def test_a_wrong_environment_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_KAFKA_SECURITY_PROTOCOL", "ROT13")
    assert run(monkeypatch, "topics", "check") == 1
    assert "SECURITY_PROTOCOL" in capsys.readouterr().err


def test_train_without_a_broker_succeeds_and_reports_what_was_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_HOST_CONNECT_TIMEOUT_S", "0.1")
    monkeypatch.setenv("TAMIYO_HOST_FLUSH_TIMEOUT_S", "0.1")
    monkeypatch.setenv("TAMIYO_WINDOW_WIDHT", "3")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert run(monkeypatch, "train", "--steps", "30", "-b", NOWHERE) == 0
    captured = capsys.readouterr()
    lost = json.loads(captured.out)["dropped_records"]
    assert lost > 0
    unknown, connection, *_, last = captured.err.splitlines()
    assert unknown.endswith("did you mean TAMIYO_WINDOW_WIDTH?")
    assert f"is NOT connected to Kafka at {NOWHERE}" in connection
    assert (
        last == f"tamiyo: {lost} records of this run did not reach Kafka at {NOWHERE}; the training itself is complete"
    )


def test_train_checks_the_settings_of_the_host_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAMIYO_HOST_SAMPLE_INTERVAL", "0")
    assert run(monkeypatch, "train", "--steps", "30", "-b", NOWHERE) == 1
    assert "TAMIYO_HOST_SAMPLE_INTERVAL=0 is wrong: expected int, >= 1" in capsys.readouterr().err


def test_train_without_tamiyo_writes_its_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "twin.json"
    assert run(monkeypatch, "train", "--task", "digits", "--static", "--steps", "20", "--report", str(path)) == 0
    result = json.loads(path.read_text())
    assert result["steps"] == 20
    assert result["task"] == "digits"
    assert result["overhead_ratio"] == 0


PLAN = ("plan", "--runs", "1000", "--layers", "50", "--interval", "60")


def test_a_plan_is_printed_with_its_assumptions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *PLAN) == 0
    out = capsys.readouterr().out
    assert all(
        each in out for each in ("partitions of every topic", "brokers", "all, 3 replicas", "A broker has 8 cores")
    )


def test_a_plan_as_json_has_every_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, *PLAN, "--steps-window", "10", "--replication", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["windows_per_s"] == pytest.approx(1000 / 60 / 10)
    assert found["brokers"] >= found["demand"]["replication"] == 2
    assert found["measured"]["command"]


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        (("--runs", "0"), 2, "--runs"),
        (("--interval", "soon"), 2, "--interval"),
        (("--costs", "/nowhere.json"), 1, "cannot read the unit costs in /nowhere.json"),
        (("--layers", "10000", "--worker-memory", "0.1"), 1, "more than the 0.1 GiB"),
    ],
)
def test_a_wrong_plan_gets_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    assert run(monkeypatch, *PLAN, *wrong) == status
    assert message in capsys.readouterr().err
