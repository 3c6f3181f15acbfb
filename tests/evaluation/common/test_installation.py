"""The folder of an installation's logs and store."""

from pathlib import Path

import pytest
import typer

from tamiyo.evaluation.common.installation import working_folder


def test_a_given_folder_is_kept_and_a_temporary_one_removed(tmp_path: Path) -> None:
    with working_folder(tmp_path / "new" / "one", "x-") as named, working_folder(None, "x-") as unnamed:
        (named / "log").touch()
        (unnamed / "log").touch()
    assert (tmp_path / "new" / "one" / "log").exists()
    assert not unnamed.exists()


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(typer.BadParameter, match="is not empty"), working_folder(tmp_path, "x-"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(typer.BadParameter, match="cannot be used"), working_folder(tmp_path / "file", "x-"):
        pass
