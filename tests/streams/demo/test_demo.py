"""`tamiyo demo`: stopped at any moment, it stops everything and says what is known. tests/flow has a whole one."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


def _read_until(process: subprocess.Popen[str], pattern: str, timeout_s: float) -> str:
    """Return what it printed, to the line with `pattern`."""
    assert process.stdout is not None
    said, deadline = "", time.monotonic() + timeout_s
    while not re.search(pattern, said):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536).decode() if ready else ""
        assert chunk, f"{pattern!r} was not said within {timeout_s} s, but:\n{said}"
        said += chunk
    return said


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("starting the broker", signal.SIGINT),
        (r"step +\d+ load_kernel at", signal.SIGINT),
        (r"step +\d+ load_kernel at", signal.SIGTERM),
    ],
)
def test_stopped_it_leaves_nothing_and_says_what_is_known(moment: str, stop: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tamiyo.streams.cli", "demo", "--task", "digits", "--steps", "100000"]
    # A temporary folder of its own, to see that it is left empty.
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
    process = subprocess.Popen(
        [*command, "--report", str(report)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _read_until(process, moment, 120)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(stop)
        rest, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 130, rest
    assert "what is known so far" in rest
    assert "Traceback" not in rest
    told = json.loads(report.read_text())
    assert told["complete"] is False
    trained = "step" in moment
    assert (told["counts"]["telemetry_records"] > 0) is trained
    if trained:
        assert 0 < told["host"]["steps"] < 100_000
    psutil.wait_procs(children, timeout=5)  # the last of them is ended by the kernel
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tamiyo")] == []
