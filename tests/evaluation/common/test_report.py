"""Reports are refused before the work if they could not be written after it."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

from tamiyo.evaluation.common.report import STDOUT, prepare_report, require_folder, write_report


def test_a_report_in_a_missing_folder_is_refused_and_any_other_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_folder(None, "--report")
    require_folder(Path("report.json"), "--report")
    require_folder(tmp_path / "report.json", "--report")
    with pytest.raises(typer.BadParameter, match="there is no folder"):
        prepare_report(tmp_path / "missing" / "report.json")
    for wrong, words in ((tmp_path, "is a folder"), (Path("/proc/report.json"), "the folder /proc cannot be written")):
        with pytest.raises(typer.BadParameter, match=words):
            prepare_report(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_and_its_place_printed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=500)
    write_report(None, {"decisions": 1}, console)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    write_report(tmp_path / "report.json", {"decisions": 1}, console)
    assert json.loads((tmp_path / "report.json").read_text()) == {"decisions": 1}
    assert str(tmp_path / "report.json") in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_report_to_standard_output_is_alone_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # and back, after the test
    prepare_report(STDOUT)
    Console().print("a table")
    sys.stdout.write("progress\n")
    write_report(STDOUT, {"decisions": float("nan")}, Console())
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"decisions": None}
    assert printed.err == "a table\nprogress\n"


@pytest.mark.parametrize("program", ["hostile", "faults"])
def test_programs_keep_standard_output_for_the_report(program: str, tmp_path: Path) -> None:
    committed = Path(__file__).parents[3] / "evaluation" / "results" / "faults.json"
    arguments = {"hostile": ["--records", "20"], "faults": ["--merge", str(committed)]}[program]
    done = subprocess.run(
        [sys.executable, "-m", f"tamiyo.evaluation.{program}", *arguments, "--report", "-"],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert json.loads(done.stdout)
    assert done.stderr
    assert list(tmp_path.iterdir()) == []


PROGRAMS = ("bench", "evidence", "faults", "hostile", "outage", "overload", "replay", "scale", "soak", "watch")


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_prepares_its_report_first(program: str) -> None:
    """Before a console that knows its file, and before anything is printed: `begin` does so too."""
    tree = ast.parse((Path(__file__).parents[3] / "evaluation" / program / "__main__.py").read_text())
    prepared = [
        function
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and "report" in [each.arg for each in function.args.args]
        and len(function.body) > 1
        and isinstance(first := function.body[1], ast.Assign | ast.Expr)
        and ast.unparse(first.value) in ("prepare_report(report)", "begin(report)")
    ]  # fmt: skip
    assert len(prepared) == 1
