"""One cell of the scale program on the embedded broker, with one worker."""

import pytest

from tamiyo.evaluation.bench.kafka import broker
from tamiyo.evaluation.scale import flow
from tamiyo.evaluation.scale.cells import CHAIN, Cell, load_of
from tamiyo.schemas.topics import DECISIONS, GRAPHS, KERNEL_PERFORMANCE, SIGNALS, TOPOLOGY, WINDOWS

pytestmark = pytest.mark.flow
COUNTED = (KERNEL_PERFORMANCE, SIGNALS, WINDOWS, GRAPHS, DECISIONS, TOPOLOGY)


def test_a_cell_accounts_for_every_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "REST_S", 0.5)
    load = load_of("scale-test", runs=4, layers=3, signals=240)
    assert load.frames == 10
    with broker("embedded") as where:
        found = flow.measure(where, Cell("four runs", load, (CHAIN,)))
    assert (found["steps"], found["windows"], found["layer_signals"]) == (40, 20, 240)
    (spent,) = found["rounds"]
    assert {topic.name: spent["topics"][topic.name][0] for topic in COUNTED} == {
        KERNEL_PERFORMANCE.name: 40, SIGNALS.name: 120, WINDOWS.name: 20, GRAPHS.name: 20, DECISIONS.name: 20,
        TOPOLOGY.name: 4,
    }  # fmt: skip
    assert len(spent["cpu_s"]) == len(spent["rss_bytes"]) == 1
    assert 0 < spent["wall_s"] < flow.SETTLE_S
    assert all(before > 0 and held > 0 for before, held in spent["rss_bytes"])
