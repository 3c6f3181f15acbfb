"""The benchmark's processes on the embedded broker: the peers finish a load, and intake's latency is measured."""

from collections.abc import Iterator

import pytest

from tamiyo.evaluation.bench.intake_latency import WARM_UP, intake_latency
from tamiyo.evaluation.bench.kafka import Broker, broker
from tamiyo.evaluation.bench.peers import PEERS, Peer, peer
from tamiyo.evaluation.common.simulated_runs import Load

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def embedded() -> Iterator[Broker]:
    with broker("embedded") as running:
        yield running


@pytest.mark.parametrize("each", PEERS, ids=lambda each: each.package)
def test_a_peer_publishes_every_window_of_a_load(embedded: Broker, each: Peer) -> None:
    if not each.installed:
        pytest.skip(f"{each.package} is not installed")
    load = Load(runs=4, layers=10, frames=60)
    found = peer(embedded, each, load, repeats=1)  # a missing window ends it with an error
    assert len(found.values) == 1
    assert found.extra["layer_signals"] == 2 * 4 * 10 * 60
    assert found.minimum > 0


def test_the_latency_of_intake_is_that_of_every_frame(embedded: Broker) -> None:
    load = Load(runs=4, layers=3, frames=(WARM_UP + 2 * 24) // 12)
    produced, arrived = intake_latency(embedded, load, frames=24, repeats=2)
    assert produced.extra["batches"] == 2 * 24
    assert len(produced.values) == 2
    assert 0 < produced.extra["p50_ms"] <= produced.extra["p99_ms"] <= produced.extra["maximum_ms"]
    assert arrived.minimum > 0


def test_a_load_of_too_few_frames_is_refused(embedded: Broker) -> None:
    with pytest.raises(ValueError, match="expected at least 108 frames, the load has 12"):
        intake_latency(embedded, Load(runs=4, layers=3, frames=1), frames=24, repeats=2)
