"""Series of the learner that exist before anything has happened."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def page() -> list[str]:
    """What a fresh learner exports."""
    code = "import tamiyo.streams.learner.metrics, prometheus_client as p; print(p.generate_latest().decode())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    "series",
    [
        'tamiyo_learner_updates_total{result="accepted"}',
        'tamiyo_learner_updates_total{result="rolled_back"}',
        'tamiyo_learner_rollbacks_total{by="canary"}',
        'tamiyo_learner_rollbacks_total{by="operator"}',
        'tamiyo_learner_experiences_total{result="rejected"}',
        'tamiyo_learner_rejected_total{reason="undecodable"}',
    ],
)
def test_a_counter_begins_at_zero(page: list[str], series: str) -> None:
    """Prometheus sees no increase in a series that begins at 1."""
    assert f"{series} 0.0" in page
