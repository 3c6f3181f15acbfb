"""Reports are refused before the work if they could not be written after it."""

import io
import json
from pathlib import Path

import pytest
import typer
from rich.console import Console

from tamiyo.evaluation.common.report import require_folder, write_report


def test_a_report_in_a_missing_folder_is_refused_and_any_other_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_folder(None)
    require_folder(Path("report.json"))
    require_folder(tmp_path / "report.json")
    with pytest.raises(typer.BadParameter, match="there is no folder"):
        require_folder(tmp_path / "missing" / "report.json")
    for wrong, words in ((tmp_path, "is a folder"), (Path("/proc/report.json"), "the folder /proc cannot be written")):
        with pytest.raises(typer.BadParameter, match=words):
            require_folder(wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_written_and_its_place_printed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=500)
    write_report(None, {"decisions": 1}, console)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    write_report(tmp_path / "report.json", {"decisions": 1}, console)
    assert json.loads((tmp_path / "report.json").read_text()) == {"decisions": 1}
    assert str(tmp_path / "report.json") in console.file.getvalue()  # type: ignore[attr-defined]
