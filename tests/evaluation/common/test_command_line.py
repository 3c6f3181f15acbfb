"""Programs of the evaluation: `-h` is `--help`."""

import re
import sys
from pathlib import Path

import pytest

from tamiyo.evaluation.common.command_line import run_program

EVALUATION = Path(__file__).parents[3] / "evaluation"
PLUG_INS = {"lab/cli/__init__.py", "offline/cli.py"}  # `tamiyo` runs them, with its own settings


def test_h_is_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def main(count: int = 1) -> None:
        """Count."""

    for flag in ("-h", "--help"):
        monkeypatch.setattr(sys, "argv", ["count", flag])
        with pytest.raises(SystemExit) as ended:
            run_program(main)
        assert ended.value.code == 0
        assert "Count." in capsys.readouterr().out


def test_every_program_is_made_so() -> None:
    made = {
        path.relative_to(EVALUATION).as_posix()
        for path in EVALUATION.rglob("*.py")
        if re.search(r"typer\.(run|Typer)\(", path.read_text())
    }
    assert made == {*PLUG_INS, "common/command_line.py"}
