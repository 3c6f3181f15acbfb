"""`tamiyo lab`: each command on short runs, wrong input in one line, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from tamiyo.evaluation.lab import cli
from tamiyo.evaluation.lab.baselines import BASELINES, GROMO, STATICS
from tamiyo.evaluation.lab.cli import arguments, output
from tamiyo.evaluation.lab.compare import read
from tamiyo.evaluation.lab.truth import objective
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams import cli as command_line
from tests.evaluation.lab.support import RunSpec, finished

SHORT = ["--steps", "100"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `tamiyo lab` in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["tamiyo", "lab", *arguments])
    monkeypatch.setattr(output, "console", Console(width=200))
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return the JSON on standard output."""
    return json.loads(capsys.readouterr().out)


def test_tasks_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "task_names", lambda: {"digits": "training", "digits_deep": "fitting"})
    assert run(monkeypatch, "tasks") == 0
    assert "digits_deep" in capsys.readouterr().out
    assert run(monkeypatch, "tasks", "--json") == 0
    first, second = printed(capsys)
    assert first == {"task": "digits", "use": "training", "parameters": 415, "steps": first["steps"]}
    assert (second["task"], second["steps"]) == ("digits_deep", 1200)


def test_every_task_of_the_laboratory_is_known() -> None:
    names = arguments.task_names()
    assert len(names) == 14
    assert {names[task] for task in ("digits", "chars", "resnet")} == {"training"}
    assert names["mixer"].startswith("held out")


def test_a_run_is_that_of_the_laboratory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "digits", "--policy", "at_once", "--seed", "3", "--steps", "200"]
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "load_kernel parallel_expansion at 0" in shown
    assert "against never adapting at equal compute" in shown
    assert run(monkeypatch, *arguments, "--json") == 0
    found, (expected, _) = printed(capsys), finished("at_once", RunSpec("digits", 3, 200))
    assert found["curve"]["validation"] == expected.curve.validation
    assert found["objective"] == objective(expected)
    never, _ = finished("never", RunSpec("digits", 3, 200))
    assert found["equal_compute"] == objective(expected) - objective(never)


def test_a_run_that_never_adapts_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "run", "digits", "--policy", "never", *SHORT) == 0
    shown = capsys.readouterr().out
    assert "no adaptation" in shown
    assert "+0.0000 against never adapting" in shown


def test_twins_show_the_worth_of_each_adaptation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["twins", "digits", "--policy", "at_once", "--seed", "3", "--steps", "300"]
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "near 300" in shown
    assert "2 adaptations; their gains sum to" in shown
    assert run(monkeypatch, *arguments, "--json") == 0
    found = printed(capsys)
    spec = RunSpec("digits", 3, 300)
    gained = objective(finished("at_once", spec)[0]) - objective(finished("never", spec)[0])
    assert sum(each["gain"] for each in found["adaptations"]) == pytest.approx(gained, abs=1e-12)
    assert run(monkeypatch, "twins", "digits", "--policy", "never", *SHORT) == 0
    assert "never executed no adaptation" in capsys.readouterr().out


def test_traffic_is_resumable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["traffic", str(tmp_path / "new" / "runs"), "--policies", "never,random:0.5", *SHORT]
    assert run(monkeypatch, *arguments, "--seeds", "0") == 0
    assert "2 of 2 runs are in" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "new" / "runs").iterdir()}
    assert {path.name for path in before} == {"digits-never-0.parquet", "digits-random_0.5-0.parquet"}
    assert run(monkeypatch, *arguments, "--seeds", "0-1") == 0
    assert "4 of 4 runs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(monkeypatch, *arguments[:-1], "150", "--seeds", "0") == 1
    assert "was made with other steps or shares" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tamiyo.evaluation.lab.traffic._make_file", lambda job, folder: RuntimeError("no luck"))
    assert run(monkeypatch, "traffic", str(tmp_path), "--policies", "never", "--seeds", "0-1", *SHORT) == 1
    captured = capsys.readouterr()
    assert captured.err.count("tamiyo: no luck") == 2
    assert "0 of 2 runs" in captured.out


def test_comparisons_are_shown_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    output = tmp_path / "pairs.parquet"
    arguments = ["compare", "--policies", "at_once", "--seeds", "0-2", "--steps", "150", "--folder", str(tmp_path)]
    assert run(monkeypatch, *arguments, "--output", str(output)) == 0
    assert "equal compute" in capsys.readouterr().out
    assert [each.seed for each in read(output)] == [0, 1, 2]
    assert run(monkeypatch, *arguments, "--json") == 0  # from the files in the folder
    found = printed(capsys)
    (comparison,) = found["comparisons"]
    assert (comparison["policy"], comparison["pairs"]) == ("at_once", 3)
    spec = RunSpec("digits", 1, 150)
    gained = objective(finished("at_once", spec)[0]) - objective(finished("never", spec)[0])
    assert found["pairs"][1]["equal_compute"] == gained


def test_static_networks_are_run_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "at_once,static:at_once,static_wider:at_once"
    assert run(monkeypatch, "compare", "--policies", names, "--seeds", "3", "--steps", "150", "--json") == 0
    pairs = {each["policy"]: each for each in printed(capsys)["pairs"]}
    assert list(pairs) == names.split(",")
    assert pairs["at_once"]["adaptations"] > 0
    assert pairs["static:at_once"]["adaptations"] == pairs["static_wider:at_once"]["adaptations"] == 0
    assert pairs["static:at_once"]["slower"] > pairs["at_once"]["slower"] > 1
    assert (
        run(monkeypatch, "run", "digits", "--policy", "static:at_once", "--seed", "3", "--steps", "150", "--json") == 0
    )
    alone = printed(capsys)
    assert alone["equal_compute"] == pairs["static:at_once"]["equal_compute"]
    assert alone["kernels"]


@pytest.mark.parametrize("task", ["host-7", "varied-0"])
def test_networks_drawn_at_random_are_tasks(task, monkeypatch, capsys):
    assert run(monkeypatch, "run", task, "--policy", "never", "--steps", "100", "--json") == 0
    assert printed(capsys)["task"] == task


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "nothing"], 1, "there is no task 'nothing'; there are mnist1d, digits"),
        (["run", "host-x"], 1, "host-N, varied-N and text-N, drawn from the seed N"),
        (["run", f"host-{'9' * 5000}"], 1, "there is no task"),
        (["run", "digits", "--policy", "nothing"], 1, "there is no baseline 'nothing'; choose from never"),
        (["run", "digits", "--policy", "random:nan"], 1, "expected random:RATE with a probability"),
        (["run", "digits", "--policy", "static:nothing"], 1, "there is no baseline 'nothing'"),
        (["twins", "digits", "--policy", "static"], 1, "static trains a network of its own and decides nothing"),
        (["traffic", "new", "--policies", "static_wider"], 1, "static_wider trains a network of its own"),
        (["compare", "--policies", "static:static"], 1, "expected a policy after static:"),
        (["run", "digits", "--steps", "0"], 2, "greater than or equal to 100"),
        (["run", "digits", "--steps", "99999999999"], 2, "less than or equal to 1000000"),
        (["run", "digits", "--steps", "nan"], 2, "valid integer"),
        (["run", "digits", "--seed", "-1"], 2, "greater than or equal to 0"),
        (["twins", "nothing"], 1, "there is no task 'nothing'"),
        (["traffic", "new", "--tasks", "digits,nothing"], 1, "there is no task 'nothing'"),
        (["traffic", "new", "--tasks", " , "], 1, "--tasks ' , ': expected names separated by commas"),
        (["traffic", "new", "--policies", "pump,nothing"], 1, "there is no baseline 'nothing'"),
        (["traffic", "new", "--seeds", "1-"], 1, "--seeds 1-: expected seeds up to 2147483647"),
        (["traffic", "new", "--seeds", "nan"], 1, "--seeds nan: expected seeds"),
        (["traffic", "new", "--seeds", "3-1"], 1, "--seeds 3-1: 3 is greater than 1"),
        (["traffic", "new", "--seeds", "0-99999"], 1, "more than 10,000 seeds"),
        (["traffic", "new", "--seeds", "99999999999"], 1, "expected seeds up to"),
        (["traffic", "new", "--alone", "nan"], 1, "--alone nan: expected a share in 0..1"),
        (["traffic", "new", "--under-policy", "2"], 1, "--under-policy 2.0: expected a share"),
        (["traffic", "new", "--workers", "0"], 2, "greater than or equal to 1"),
        (["traffic", "file/below"], 1, "cannot write into file/below: Not a directory"),
        (["traffic", "/proc/new"], 1, "cannot write into /proc/new: No such file or directory"),
        (["compare", "--policies", "never"], 1, "name a policy to compare with never adapting"),
        (["compare", "--output", "/proc/pairs.parquet"], 1, "cannot write into /proc"),
        (["compare", "--folder", "file"], 1, "cannot write into file: File exists"),
    ],
)
def test_wrong_input_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert run(monkeypatch, *arguments) == status
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert words in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("package", arguments.EXTRA)
def test_a_missing_package_of_the_extra_is_named(package: str) -> None:
    def broken() -> None:
        raise ModuleNotFoundError(f"No module named '{package}.part'", name=f"{package}.part")

    words = rf"needs {package}.part: pip install 'esper-tamiyo\[lab\]'"
    with pytest.raises(ConfigurationError, match=words), arguments.needs_extra():
        broken()


def test_a_missing_module_of_ours_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError), arguments.needs_extra():
        raise ModuleNotFoundError("No module named 'tamiyo.x'", name="tamiyo.x")


def test_seeds_are_listed_once_in_order() -> None:
    assert arguments.parse_seeds("3,0-2, 1-4") == [3, 0, 1, 2, 4]


def living(group: int) -> list[str]:
    """Return the processes of a process group that have not ended."""
    found = []
    for each in psutil.process_iter(["pid", "status", "cmdline"]):
        try:
            if os.getpgid(each.pid) == group and each.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(f"{each.pid}: {each.info['cmdline']}")
        except ProcessLookupError:
            continue
    return found


def accept_interrupts() -> None:
    """Take SIGINT as at a terminal: a shell that starts the tests in the background makes them, and this, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def comparing(workers: str, folder: Path) -> subprocess.Popen[str]:
    """Return the process of a comparison of which the first pair is finished."""
    command = [sys.executable, "-m", "tamiyo.streams.cli", "lab", "compare", "--seeds", "0-199", "--steps", "100"]
    process = subprocess.Popen(
        [*command, "--folder", str(folder), "--workers", workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=accept_interrupts,
    )
    deadline = time.monotonic() + 90
    while len(list(folder.glob("*.parquet"))) < 4:  # at least one pair
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def none_living(group: int) -> bool:
    """Return whether all processes of a group end; multiprocessing's own helper does a moment later."""
    deadline = time.monotonic() + 10
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(group)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_finished(workers: str, tmp_path: Path) -> None:
    process = comparing(workers, tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "finished files are kept" in " ".join(err.split())
    assert "Traceback" not in err
    assert "digits" in out  # the comparison of the finished pairs
    assert 4 <= len(list(tmp_path.iterdir())) < 400
    assert none_living(process.pid)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    process = comparing("2", tmp_path)
    process.send_signal(number)  # to it alone, as a service manager does
    process.communicate(timeout=60)
    assert none_living(process.pid)


def test_without_the_extra_a_command_names_what_is_missing() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from tamiyo.streams.cli import main; main()"
    command = [sys.executable, "-c", code, "lab", "twins", "digits"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "tamiyo: `tamiyo lab` needs pyarrow: pip install 'esper-tamiyo[lab]'\n"


def test_completion_has_all_names() -> None:
    assert arguments.complete_tasks("") == list(arguments.task_names())
    assert arguments.complete_policies("") == [*BASELINES, *STATICS, GROMO]
    assert arguments.complete_tasks("digits,mnist5k_f") == ["digits,mnist5k_flat", "digits,mnist5k_few"]
