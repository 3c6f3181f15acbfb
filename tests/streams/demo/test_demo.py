"""`tamiyo demo` stops everything and reports at any moment. tests/system runs a complete one."""

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
    """Return the output up to `pattern`."""
    assert process.stdout is not None
    output, deadline = "", time.monotonic() + timeout_s
    while not re.search(pattern, output):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536).decode() if ready else ""
        assert chunk, f"{pattern!r} was not printed within {timeout_s} s, but:\n{output}"
        output += chunk
    return output


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("starting the broker", signal.SIGINT),
        (r"step +\d+ load_kernel at", signal.SIGINT),
        (r"step +\d+ load_kernel at", signal.SIGTERM),
    ],
)
def test_a_stop_leaves_nothing_behind_and_reports(moment: str, stop: signal.Signals, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tamiyo.streams.cli", "demo", "--task", "digits", "--steps", "100000"]
    # A separate temporary folder, to check that it is left empty.
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
    assert "the report covers the demo so far" in rest
    assert "Traceback" not in rest
    found = json.loads(report.read_text())
    assert found["complete"] is False
    trained = "step" in moment
    assert (found["counts"]["telemetry_records"] > 0) is trained
    if trained:
        assert 0 < found["host"]["steps"] < 100_000
    psutil.wait_procs(children, timeout=5)  # the kernel ends the last of them
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tamiyo")] == []
