"""A process's wall clock is set from outside, and its monotonic clock is not."""

import os
import subprocess
import sys
from pathlib import Path

from tamiyo.evaluation.faults.wall_clock import prepare, set_ahead

SCRIPT = """
import time
from datetime import UTC, datetime

print(round(time.time() - datetime.now(UTC).timestamp()), round(time.time_ns() / 1e9 - time.time()))
began = time.monotonic()
input()
while time.monotonic() < began + 0.1:
    pass
print(round(time.time() - datetime.now(UTC).timestamp()), time.monotonic() - began < 60)
"""


def test_a_process_follows_the_file_in_its_working_directory(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    set_ahead(work, 3_600)
    environment = {**os.environ, **prepare(tmp_path / "hook", os.environ)}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=work, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().split() == ["3600", "0"]
        set_ahead(work, -3_600)
        assert process.communicate("\n", timeout=30)[0].split() == ["-3600", "True"]


def test_a_file_that_is_no_number_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "clock-ahead-s").write_text("soon")
    environment = {**os.environ, **prepare(tmp_path / "hook", os.environ)}
    process = subprocess.run(
        [sys.executable, "-c", "import time, datetime as d; print(round(time.time() - d.datetime.now().timestamp()))"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert process.stdout.strip() == "0"
