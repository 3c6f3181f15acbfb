"""A simulated installation's recording is one that the page's feed reads whole, with all kinds of records."""

from pathlib import Path

from tamiyo.evaluation.watch.bars import _Latencies, _slope
from tamiyo.evaluation.watch.installation_log import copies, run_log
from tamiyo.evaluation.watch.made_recording import make_recording
from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import RecordingFeed
from tamiyo.streams.watch.history import History


def test_a_simulated_installation_is_read_whole(tmp_path: Path) -> None:
    log = run_log(2, 60)
    assert make_recording(tmp_path / "r", copies(log, 3)) == 3 * (len(log) - 1) + 1
    history = History()
    with RecordingFeed(history, tmp_path / "r") as feed:
        assert feed.wait_until_read(60)
    assert (history.source.undecodable, len(history.runs)) == (0, 3)
    found = views.run(history, "watched-0001")
    assert found["run"]["adaptations"] > 0
    assert found["projections"]
    assert {each["status"] for each in found["kernels"]} == {"active"}
    chosen = views.decision(history, "watched-0001", found["kernels"][0]["decision_id"])
    assert [each["kind"] for each in chosen["actions"] if each["chosen"]] == ["load_kernel:low_rank"]
    assert chosen["rewards"]


def test_latencies_are_those_of_the_events_that_came() -> None:
    measured = _Latencies()
    for step, sent in ((1_001, 1.0), (1_002, 1.1), (1_003, 1.2)):
        measured.sent((step, sent))
    measured.take({"run": {"step": 1_001}}, 1.01)
    measured.take({"run": {"step": 1_002}}, 1.13)
    assert measured.summary() == {"events": 2, "missing": 1, "p50": 20.0, "p95": 29.0, "maximum": 30.0}


def test_the_slope_is_a_change_a_second() -> None:
    assert _slope([1.0, 2.0, 3.0], 2.0) == 0.5
    assert _slope([1.0], 2.0) == 0.0
