"""The report's arithmetic and words."""

import math

import pytest
from rich.console import Console

from tamiyo.streams.demo.report import Report, buckets, latencies, quantile, show

PAGE = """\
# TYPE tamiyo_stage_latency_seconds histogram
tamiyo_stage_latency_seconds_bucket{stage="intake",le="0.001"} 50
tamiyo_stage_latency_seconds_bucket{stage="intake",le="0.002"} 90
tamiyo_stage_latency_seconds_bucket{stage="intake",le="+Inf"} 100
tamiyo_stage_latency_seconds_bucket{stage="decisions",le="0.001"} 0
tamiyo_stage_latency_seconds_bucket{stage="decisions",le="0.002"} 10
tamiyo_stage_latency_seconds_bucket{stage="decisions",le="+Inf"} 10
"""


def test_quantiles_interpolate_in_their_bucket() -> None:
    cumulative = {0.001: 50.0, 0.002: 90.0, math.inf: 100.0}
    assert quantile(0.25, cumulative) == pytest.approx(0.0005)
    assert quantile(0.5, cumulative) == pytest.approx(0.001)
    assert quantile(0.7, cumulative) == pytest.approx(0.0015)
    assert quantile(0.99, cumulative) == 0.002  # above the last bound
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {0.001: 0.0, math.inf: 0.0}) is None


def test_buckets_of_several_workers_add_up() -> None:
    assert buckets([PAGE, PAGE], "tamiyo_stage_latency_seconds", {"stage": "intake"}) == {
        0.001: 100.0,
        0.002: 180.0,
        math.inf: 200.0,
    }


def test_latencies_are_in_milliseconds_and_unknown_where_nothing_was_measured() -> None:
    found = latencies([PAGE])
    assert found["intake"] == {"p50": 1.0, "p99": 2.0}
    assert found["decision"] == {"p50": 1.5, "p99": 1.99}
    assert found["telemetry_to_decision"] == {"p50": None, "p99": None}


@pytest.mark.parametrize(
    ("adaptations", "words"), [(1, "1 adaptation in 2 decisions"), (2, "2 adaptations in 3 decisions")]
)
def test_the_summary_counts_adaptations_in_words(
    adaptations: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"step": 5, "blueprint": None, "layer": None, "outcome": None, "reward": None, "explanation": None}
    decisions = [row | {"type": "no_op"}, *[row | {"type": "unload_kernel", "layer": "0"}] * adaptations]
    show(Report("digits", 0, 1.0, True, None, None, [], {}, {}, decisions), Console())
    assert words in capsys.readouterr().out
