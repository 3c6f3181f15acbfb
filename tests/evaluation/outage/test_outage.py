"""The cost of a broker outage: the arithmetic, and the program for a few seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tamiyo.evaluation.outage.__main__ import Outage, Pair, compare, result_of
from tamiyo.evaluation.outage.training import Turn
from tamiyo.streams.admin.brokers import kafka_home


def pair(at_s: float, connected: float, cut: float, dropped: int = 0) -> Pair:
    return Pair(at_s, Turn(connected, connected / 50, 10, 0), Turn(cut, cut / 20, 10, dropped))


def test_the_ratio_is_the_median_of_neighbouring_turns() -> None:
    found = compare([pair(at, 0.1 * at, 0.1 * at * (1.02 if at % 3 else 9.0), dropped=at) for at in range(1, 101)])
    assert found["ratio"] == 1.02  # outliers change nothing
    assert found["interval"] == [1.02, 1.02]
    assert found["dropped"] == 99
    assert found["longest_step_ms"] == {"connected": 200.0, "cut": 4455.0}


def test_too_few_turns_give_no_ratio() -> None:
    assert compare([])["ratio"] is None
    assert compare([pair(at, 1, 1) for at in range(5)])["interval"] is None
    assert compare([pair(at, 1, 1) for at in range(6)])["interval"] == [1, 1]


@pytest.mark.parametrize(("ratio", "within"), [(1.04, True), (1.06, False)])
def test_the_verdict_is_on_the_interval(ratio: float, within: bool) -> None:
    measured = Outage.__new__(Outage)
    measured.reconnected_s = 1.5
    measured.phases = {"without": [pair(at, 1.0, ratio) for at in range(130)]}
    result = result_of(measured, minutes=2.2, task="digits")
    assert result["within"] is within
    assert result["ratio_by_minute"] == [ratio, ratio, ratio]
    assert json.loads(json.dumps(result)) == result


def test_an_outage_that_was_stopped_at_once_is_not_within() -> None:
    measured = Outage.__new__(Outage)
    measured.reconnected_s, measured.phases = None, {}
    assert result_of(measured, minutes=1, task="digits")["within"] is False


@pytest.mark.skipif(kafka_home() is None, reason="needs a real Kafka: KAFKA_HOME names none")
@pytest.mark.timeout(240)
def test_training_continues_without_its_broker_and_publishes_again(tmp_path: Path) -> None:
    report = tmp_path / "outage.json"
    command = [sys.executable, "-m", "tamiyo.evaluation.outage", "--minutes", "0.1", "--report", str(report)]
    done = subprocess.run(
        [*command, "--task", "digits"], env=os.environ, capture_output=True, text=True, timeout=230, check=False
    )
    assert report.exists(), done.stderr[-2000:]
    result = json.loads(report.read_text())
    assert result["complete"], done.stdout[-2000:]
    # Six seconds are too short for a ratio, but show that training continued and records arrived afterwards.
    assert result["phases"]["without"]["steps_each"] > 100
    assert result["heard_again_s"] is not None
    assert result["last"]["published"] > 0
