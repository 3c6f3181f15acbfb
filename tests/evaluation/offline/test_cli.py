"""`tamiyo evaluate` on a recording: verdict, JSON, exit status, and wrong input in one line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tamiyo.evaluation.lab.bandit import BLUEPRINTS
from tamiyo.evaluation.offline import output
from tamiyo.models.checkpoint import CheckpointHeader, save
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.topics import EXPERIENCE, WINDOWS
from tamiyo.streams import cli as command_line
from tests.evaluation.offline.plant import planted_log, recorded, untrained_policy
from tests.support.recordings import make_recording, message


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run `tamiyo evaluate` in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["tamiyo", "evaluate", *arguments])
    monkeypatch.setattr(output, "console", Console(width=200))
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


def write_checkpoint(path: Path, policy: TamiyoPolicy) -> str:
    path.write_bytes(save(policy, None, CheckpointHeader.of(policy, version=12)))
    return str(path)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a recording of 40 runs of 20 decisions."""
    folder = tmp_path_factory.mktemp("recordings") / "monday"
    make_recording(folder, [*recorded(planted_log()), message(WINDOWS.name, 0)])
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a checkpoint of an untrained policy, which acts as the heuristic."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "policy-000012.safetensors", untrained_policy())


def test_a_checkpoint_is_judged_with_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: str, checkpoint: str
) -> None:
    assert run(monkeypatch, "--policy", checkpoint, "--experience", recording) == 0
    shown = capsys.readouterr().out
    for words in ("IPS", "SNIPS", "direct method", "doubly robust", "effective decisions", "policy-000012"):
        assert words in shown
    assert "800 decisions of 40 runs; mean reward +0.0" in shown
    assert "\nbetter: policy-000012 earns more than logged (+0.0" in shown
    assert "left out" not in shown


def test_json_has_every_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: str, checkpoint: str
) -> None:
    arguments = ["--policy", checkpoint, "--against", "heuristic", "--experience", recording, "--json"]
    assert run(monkeypatch, *arguments) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["status"] == "no_difference"  # an untrained policy is the heuristic, but for a floor of 1e-6
    assert found["verdict"].startswith("no difference shown between policy-000012 and heuristic")
    assert (found["runs"], found["decisions"], found["left_out"], found["warnings"]) == (40, 800, {}, [])
    assert (found["policy"]["name"], found["against"]["name"]) == ("policy-000012", "heuristic")
    assert set(found["difference"]) == set(found["policy"]["estimates"]) == {"ips", "snips", "dm", "dr"}
    assert abs(found["difference"]["dr"]["value"]) < 1e-4
    estimate = found["policy"]["estimates"]["dr"]
    assert estimate["low"] < estimate["value"] < estimate["high"]
    assert found["policy"]["support"]["effective_sample_size"] > 400
    assert found["thresholds"] == {
        "effective_sample_size": 50, "effective_runs": 20, "covered": 0.9, "weight_limit": 50,
    }  # fmt: skip


def test_two_checkpoints_of_one_name_are_named_by_their_paths(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, recording: str, checkpoint: str
) -> None:
    other = write_checkpoint(tmp_path / Path(checkpoint).name, untrained_policy(seed=1))
    assert run(monkeypatch, "--policy", checkpoint, "--against", other, "--experience", recording, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"]["name"], found["against"]["name"]) == (checkpoint, other)


def test_the_shipped_policy_is_judged_with_the_blueprints_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recording: str
) -> None:
    arguments = ["--policy", "builtin", "--against", "heuristic", "--experience", recording, "--json"]
    assert run(monkeypatch, *arguments) in (0, 3)
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"]["name"], found["decisions"], found["left_out"]) == ("builtin", 800, {})
    assert found["policy"]["support"]["effective_sample_size"] != found["against"]["support"]["effective_sample_size"]


def test_too_little_support_is_status_3_without_a_claim(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_recording(tmp_path, recorded(planted_log(5, 10)))
    arguments = ["--policy", "heuristic", "--experience", str(tmp_path)]
    assert run(monkeypatch, *arguments) == 3
    shown = capsys.readouterr().out
    assert "too little support: heuristic: effective sample size " in shown
    assert "effective runs of at least 20" in shown
    assert "doubly robust" not in shown
    assert run(monkeypatch, *arguments, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "too_little_support"
    assert (found["difference"], found["policy"]["estimates"], found["direct_r2"]) == (None, None, None)
    assert run(monkeypatch, *arguments, "--min-effective", "10", "--min-runs", "2") == 0
    assert "doubly robust" in capsys.readouterr().out


def test_what_is_left_out_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = list(planted_log())
    log[3] = log[3].model_copy(update={"complete": False})
    log[4] = log[4].model_copy(update={"kinds": log[4].kinds[::-1]})
    log[5] = log[5].model_copy(update={"reward": float("nan")})
    make_recording(tmp_path, [*recorded(log), message(EXPERIENCE.name, 10_000, b"nonsense")])
    arguments = ["--experience", str(tmp_path), "--policy"]
    policy = write_checkpoint(tmp_path.parent / "other.safetensors", untrained_policy())
    assert run(monkeypatch, *arguments, policy) == 0
    shown = capsys.readouterr().out
    assert "left out: incomplete 1, invalid 1, kinds 1, undecodable 1\n" in shown
    assert "\n1 decisions with incomplete rewards are left out. Adaptations complete later than no_op" in shown
    assert run(monkeypatch, *arguments, policy, "--incomplete", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == {"undecodable": 1, "invalid": 1, "kinds": 1}
    assert (found["decisions"], found["warnings"]) == (798, [])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--policy", "never"], 2, "Missing option"),
        (["--policy", "missing.safetensors", "--experience", "RECORDING"], 1, "no checkpoint missing.safetensors: exp"),
        (["--policy", "text", "--experience", "RECORDING"], 1, "text: checkpoint of 9 bytes cannot be read"),
        (["--policy", "damaged", "--experience", "RECORDING"], 1, "damaged: checkpoint of "),
        (["--policy", "never", "--against", "nobody", "--experience", "RECORDING"], 1, "there is no checkpoint nobody"),
        (["--policy", "never", "--experience", "missing"], 1, "there is no recording missing: expected its folder"),
        (["--policy", "never", "--experience", "text"], 1, "text is not a file of a recording"),
        (["--policy", "never", "--experience", "folder"], 1, "folder is not a recording: it has no manifest.json"),
        (["--policy", "never", "--experience", "empty"], 1, "empty has no experience to judge a policy by"),
        (["--policy", "never", "--experience", "nan"], 1, "to judge a policy by; left out: invalid 6"),
        (["--policy", "never", "--experience", "unfinished"], 1, "left out: incomplete 6; --incomplete counts those"),
        (["--policy", "foreign", "--experience", "RECORDING"], 1, "to judge a policy by; left out: kinds 800"),
        (["--policy", "never", "--experience", "RECORDING", "--min-runs", "0"], 2, "min-runs"),
        (["--policy", "never", "--experience", "RECORDING", "--min-effective", "nan"], 2, "min-effective"),
        (["--policy", "never", "--experience", "RECORDING", "--weight-limit", "inf"], 2, "weight-limit"),
    ],
)
def test_wrong_input_is_explained_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    recording: str,
    checkpoint: str,
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("some text")
    Path("damaged").write_bytes(Path(checkpoint).read_bytes()[:-100])
    Path("folder").mkdir()
    write_checkpoint(Path("foreign"), untrained_policy(blueprints=(*BLUEPRINTS, "low_rank")))
    log = planted_log(2, 3)
    make_recording(Path("empty"), [message(WINDOWS.name, 0)])
    make_recording(Path("nan"), recorded([each.model_copy(update={"reward": float("nan")}) for each in log]))
    make_recording(Path("unfinished"), recorded([each.model_copy(update={"complete": False}) for each in log]))
    assert run(monkeypatch, *(recording if each == "RECORDING" else each for each in arguments)) == status
    captured = capsys.readouterr()
    shown = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert words in shown
    assert "Traceback" not in shown
    if status == 1:
        assert captured.err.count("\n") == 1
        assert captured.out == ""
