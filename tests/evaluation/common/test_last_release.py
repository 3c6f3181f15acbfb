"""The source of the last release."""

import subprocess
from pathlib import Path

import pytest

from tamiyo.evaluation.common import last_release, measure
from tamiyo.schemas.avro_schema import RELEASED


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=me", "-c", "user.email=me@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose second of three commits released 0.10.0, after 0.9.0."""
    root = tmp_path / "repository"
    for number, version in enumerate(("0.9.0", "0.10.0", None)):
        root.mkdir(exist_ok=True)
        if number == 0:
            git(root, "init", "--quiet")
        (root / "content").write_text(str(number))
        if version is not None:
            schemas = root / "schemas" / "avro" / "released" / version
            schemas.mkdir(parents=True)
            (schemas / "A.avsc").write_text("{}")
        git(root, "add", "-A")
        git(root, "commit", "--quiet", "-m", f"change {number}")
    monkeypatch.setattr(last_release, "ROOT", root)
    monkeypatch.setattr(last_release, "RELEASED", root / "schemas" / "avro" / "released")
    return root


def test_the_last_release_is_the_commit_that_its_schemas_were_released_at(history: Path, tmp_path: Path) -> None:
    folder = last_release.unpack(tmp_path / "old")
    assert folder is not None
    assert (folder / "tamiyo" / "content").read_text() == "1"


def test_the_last_release_is_that_of_its_tag(history: Path, tmp_path: Path) -> None:
    git(history, "tag", "v0.10.0")
    git(history, "tag", "v0.9.0", "HEAD~2")
    folder = last_release.unpack(tmp_path / "old")
    assert folder is not None
    assert (folder / "tamiyo" / "content").read_text() == "2"


def test_a_measurement_names_its_commit_and_whether_files_have_changed(history: Path) -> None:
    found = measure.commit()
    assert found is not None
    assert git(history, "rev-parse", "HEAD").startswith(found)
    (history / "content").write_text("changed")
    assert measure.commit() == f"{found}-dirty"


def test_without_a_history_there_is_no_last_release(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(last_release, "ROOT", empty)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert last_release.unpack(tmp_path / "old") is None
    assert measure.commit() is None
    monkeypatch.setenv("PATH", str(empty))
    assert last_release.unpack(tmp_path / "old") is None


def test_the_last_release_of_this_repository_is_known() -> None:
    assert last_release.last_version() in {each.name for each in RELEASED.iterdir()}
