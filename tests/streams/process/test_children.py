"""Children of the command line: what an exit means to their parent."""

from pathlib import Path

import pytest

from tamiyo.schemas.errors import TamiyoError
from tamiyo.streams.process import children as module
from tamiyo.streams.process.children import MOST_RESTARTS, Children
from tamiyo.streams.process.exit_codes import EXIT_TEMPFAIL


@pytest.fixture
def children(tmp_path, monkeypatch):
    """Children that run a script instead of `tamiyo`: it appends a line to `starts`, and exits with `status`."""
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, pathlib, time\n"
        "folder = pathlib.Path(__file__).parent\n"
        "with (folder / 'starts').open('a') as starts: starts.write('x')\n"
        "if (folder / 'stays').exists(): time.sleep(60)\n"
        "print('the reason'); sys.exit(int(sys.argv[-1]))\n"
    )
    popen = module.subprocess.Popen
    monkeypatch.setattr(
        module.subprocess, "Popen", lambda command, **given: popen([command[0], str(script), *command[3:]], **given)
    )
    with Children(tmp_path, {}) as made:
        yield made


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def test_a_temporary_failure_is_restarted(children, tmp_path):
    children.start("worker", [str(EXIT_TEMPFAIL)])
    assert children.wait("worker", 30) == EXIT_TEMPFAIL
    (tmp_path / "stays").touch()
    children.check(["worker"])
    assert children.running("worker")
    children.check(["worker"])


def test_the_same_failure_again_and_again_is_an_error(children, tmp_path):
    children.start("worker", [str(EXIT_TEMPFAIL)])
    for _ in range(MOST_RESTARTS):
        children.wait("worker", 30)
        children.check(["worker"])
    children.wait("worker", 30)
    with pytest.raises(TamiyoError, match=r"(?s)worker exited with status 75.*the reason"):
        children.check(["worker"])
    assert starts(tmp_path) == MOST_RESTARTS + 1


@pytest.mark.parametrize("status", [0, 1, 70])
def test_any_other_exit_is_an_error_at_once(children, tmp_path, status):
    children.start("worker", [str(status)])
    children.wait("worker", 30)
    with pytest.raises(TamiyoError, match="worker exited"):
        children.check(["worker"])
    assert starts(tmp_path) == 1
