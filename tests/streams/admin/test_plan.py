"""The plan of an installation: exact sizes from round unit costs, laws, and clear errors."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import CATALOGUE, DECISIONS, KERNEL_PERFORMANCE, TOPOLOGY
from tamiyo.streams.admin.plan import COSTS, Demand, UnitCosts, assumptions, readable_bytes, size
from tamiyo.streams.admin.topics import plan as topic_plan

MIB = 2.0**20


def cost(per: str, fixed: float, layer: float) -> dict[str, Any]:
    return {"per": per, "fixed": fixed, "layer": layer}


ROUND: dict[str, Any] = {
    "format": 1,
    "steps_per_window": 5,
    "processor_us": {"intake": cost("step", 1_000, 10), "decisions": cost("window", 5_000, 50)},
    "broker_us": cost("step", 200, 2),
    "learner_us": cost("window", 100, 0),
    "topic_bytes": {
        KERNEL_PERFORMANCE.name: cost("step", 1_000, 10),
        DECISIONS.name: cost("window", 500, 0),
        TOPOLOGY.name: cost("run", 1_000, 100),
    },
    "memory_bytes": {"worker": 256 * MIB, "run": MIB, "layer": MIB / 100},
    "measured": {"command": "none", "machine": {"processor": "round"}},
}
COST = UnitCosts.model_validate(ROUND)
DEMAND = Demand(runs=1_000, layers=100, interval_s=1.0, steps_per_window=5, utilisation=0.5)


def test_sizes_are_the_products_of_rates_and_costs() -> None:
    found = size(DEMAND, COST)
    assert (found.steps_per_s, found.windows_per_s) == (1_000, 200)
    assert (found.records_per_s, found.layer_signals_per_s) == (3_000, 200_000)
    assert found.stage_cores == {"intake": pytest.approx(2.0), "decisions": pytest.approx(2.0)}
    # 4 busy cores at one half; 768 MiB are left for runs of 2 MiB each.
    assert found.workers_for == {"processor": 8, "memory": 3}
    assert (found.workers, found.partitions) == (8, 16)
    assert found.worker_memory_bytes == pytest.approx((256 + 125 * 2) * MIB)
    assert found.learner_cores == pytest.approx(0.02)
    assert found.learners == 1


def test_topics_grow_by_their_rates_and_keep_what_the_catalogue_keeps() -> None:
    telemetry, decisions, topology = size(DEMAND, COST).topics
    assert telemetry.bytes_per_day == pytest.approx(2_000 * 1_000 * 86_400)
    assert (telemetry.retention_days, telemetry.stored_bytes) == (7, pytest.approx(7 * telemetry.bytes_per_day))
    assert decisions.bytes_per_day == pytest.approx(500 * 200 * 86_400)
    assert (decisions.retention_days, decisions.stored_bytes) == (90, pytest.approx(90 * decisions.bytes_per_day))
    assert (topology.retention_days, topology.bytes_per_day) == (None, 0)
    assert topology.stored_bytes == pytest.approx(1_000 * 11_000)


def test_brokers_follow_from_the_scarcest_resource() -> None:
    found = size(DEMAND, COST)
    assert found.bytes_per_day == pytest.approx((2_000 * 1_000 + 500 * 200) * 86_400)
    assert found.stored_bytes == pytest.approx(3 * sum(each.stored_bytes for each in found.topics))
    replicas = 3 * 16 * len(topic_plan(CATALOGUE, TopicNames()))
    assert found.brokers_for == {
        "replication": 3,
        "processor": 1,  # 3 x .4 cores at one half of 8
        "writes": 1,
        "disk": 2,
        "partitions": -(-replicas // 4_000),
    }
    assert found.brokers == 3
    assert size(replace(DEMAND, broker_disk_tb=0.5), COST).brokers_for["disk"] == 12
    assert size(replace(DEMAND, broker_mb_s=1.0), COST).brokers_for["writes"] == 7


def test_a_retention_of_ones_own_spares_compacted_topics() -> None:
    telemetry, decisions, topology = size(replace(DEMAND, retention_days=2.0), COST).topics
    assert (telemetry.retention_days, decisions.retention_days, topology.retention_days) == (2, 2, None)
    assert decisions.stored_bytes == pytest.approx(2 * decisions.bytes_per_day)


def test_memory_can_need_more_workers_than_processors_do() -> None:
    found = size(replace(DEMAND, interval_s=1_000.0), COST)
    assert found.workers_for == {"processor": 1, "memory": 3}
    assert found.worker_memory_bytes <= 2**30


def test_experiences_beyond_one_learner_are_reported() -> None:
    found = size(replace(DEMAND, interval_s=0.01), COST)
    assert found.learners == 4
    assert "4 installations" in assumptions(found, COST)[-1]
    assert "installations" not in " ".join(assumptions(size(DEMAND, COST), COST))


def test_another_window_is_named_as_an_assumption() -> None:
    longer = replace(DEMAND, steps_per_window=10)
    assert "10 sampled steps" in " ".join(assumptions(size(longer, COST), COST))
    assert size(longer, COST).windows_per_s == 100


@given(runs=st.integers(1, 50_000), more=st.integers(1, 10), layers=st.integers(1, 2_000))
def test_more_runs_never_need_less(runs: int, more: int, layers: int) -> None:
    demand = Demand(runs=runs, layers=layers, interval_s=60.0, worker_memory_gib=64.0)
    small, large = size(demand, COST), size(replace(demand, runs=runs * more), COST)
    assert large.workers >= small.workers
    assert large.brokers >= small.brokers
    assert large.bytes_per_day == pytest.approx(more * small.bytes_per_day)
    assert large.worker_memory_bytes <= 64 * 2**30
    assert sum(large.stage_cores.values()) <= large.workers * demand.utilisation + 1e-9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runs": 0}, "runs must be a number above 0, got 0"),
        ({"layers": -1}, "layers must be"),
        ({"interval_s": float("nan")}, "interval_s must be"),
        ({"interval_s": float("inf")}, "interval_s must be"),
        ({"steps_per_window": 0}, "steps_per_window must be"),
        ({"replication": 0}, "replication must be"),
        ({"utilisation": 1.5}, "utilisation must be above 0 and at most 1"),
        ({"retention_days": 0.0}, "retention_days must be"),
        ({"broker_cores": 0}, "broker_cores must be"),
        ({"worker_memory_gib": 0.25}, "more than the 0.25 GiB"),
        ({"runs": 10_000_000}, "at most 10,000 are possible"),
    ],
)
def test_an_impossible_demand_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        size(replace(DEMAND, **wrong), COST)


def test_the_costs_of_the_release_are_of_its_stages_and_topics() -> None:
    found = UnitCosts.load()
    assert list(found.processor_us) == ["intake", "windows", "graphs", "decisions", "rewards"]
    assert all(each.at(50) > 0 for each in (*found.processor_us.values(), *found.topic_bytes.values()))
    assert found.memory_bytes.worker > 50 * MIB
    assert found.measured["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format"),
        ({"broker_us": cost("step", -1, 0)}, "broker_us.fixed"),
        ({"topic_bytes": {"nowhere": cost("step", 1, 1)}}, "topics that this release does not have: nowhere"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_wrong_unit_costs_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({**ROUND, **change}))
    with pytest.raises(ConfigurationError, match=message):
        UnitCosts.load(path)


def test_unreadable_unit_costs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read the unit costs"):
        UnitCosts.load(tmp_path / "nowhere.json")
    (tmp_path / "text").write_text("nothing")
    with pytest.raises(ConfigurationError, match="no unit costs"):
        UnitCosts.load(tmp_path / "text")
    assert UnitCosts.load(COSTS) == UnitCosts.load()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1_500, "1.5 kB"), (2.5e12, "2.5 TB"), (5e15, "5,000 TB")]
)
def test_bytes_are_readable(count: float, text: str) -> None:
    assert readable_bytes(count) == text
