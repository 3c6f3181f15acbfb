"""Kernels: one compiled or refused kernel a load decision."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tamiyo.host import LayerSpec
from tamiyo.host._kernels.store import KernelStore
from tamiyo.schemas.adaptation import Action, AdaptationDecision, KernelStatus
from tamiyo.schemas.identity import decision_id, kernel_id
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import DECISIONS, KERNELS, TOPOLOGY
from tamiyo.streams.settings import KernelSettings
from tamiyo.streams.stages.kernels.stage import KernelsStage
from tests.support.factories import make_topology
from tests.support.stage_log import FixedView, Log, StageHarness

SPEC = LayerSpec.of("layer.0", torch.nn.Conv1d(1, 6, 5, 2, 1), torch.zeros(1, 1, 40))


def topology(**fields: Any) -> ModelTopology:
    made = make_topology(2, **fields)
    first = made.layers[0].model_copy(update={"spec": json.dumps(SPEC.to_dict())})
    broken = made.layers[1].model_copy(update={"spec": "[]"})
    return made.model_copy(update={"layers": [first, broken]})


def decide(number: int = 0, **fields: Any) -> AdaptationDecision:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "decision_id": decision_id(f"graph-{number}"),
        "graph_id": f"graph-{number}",
        "step": 100,
        "time_ms": 0,
        "type": "load_kernel",
        "layer_id": "layer.0",
        "blueprint": "parallel_expansion",
        "proposed": Action(type="load_kernel", layer_id="layer.0", blueprint="parallel_expansion"),
        "confidence": 0.8,
        "uncertainty": 0.2,
        "urgency": 0.5,
        "predicted_reward": 0.2,
        "value": 0.1,
        "method": "policy",
        "policy_version": 0,
        "seed": 1,
        "temperature": 1.0,
        "layers": ["layer.0", "layer.1"],
        "kinds": ["load_kernel:parallel_expansion"],
        "action_index": 1,
        "mask": b"\1\1\0",
        "probabilities": Tensor.of([0.5, 0.5, 0.0]),
        "log_probability": -0.69,
        "entropy": 0.69,
    }
    return AdaptationDecision(**{**values, **fields})


class KernelBench:
    """A stage, its store and the topology view."""

    def __init__(self, url: Path, topologies: dict[str, ModelTopology]) -> None:
        self.view = FixedView(topologies)
        self.settings = KernelSettings(store_url=f"file://{url}")
        self.store = KernelStore(self.settings.store_url)
        self.log = Log()
        self.harness = StageHarness(
            lambda: KernelsStage(0, self.settings, {TOPOLOGY.name: self.view}), self.log.messages
        )

    def decide(self, *decisions: AdaptationDecision) -> list[Any]:
        for decision in decisions:
            self.log.add(DECISIONS, decision)
        return self.harness.run().records(KERNELS)


@pytest.fixture
def bench(tmp_path: Path) -> KernelBench:
    return KernelBench(tmp_path, {"run-1": topology()})


def test_a_load_gets_a_kernel_that_preserves_the_function(bench: KernelBench) -> None:
    (record,) = bench.decide(decide())
    assert record.status == KernelStatus.COMPILED
    assert record.kernel_id == kernel_id(decision_id("graph-0"))
    assert (record.run_id, record.layer_id, record.blueprint) == ("run-1", "layer.0", "parallel_expansion")
    kernel, metadata = bench.store.get(record.kernel_id, record.checksum)
    assert metadata.blueprint == "parallel_expansion"
    assert record.parameters == sum(parameter.numel() for parameter in kernel.parameters())
    layer_input, layer_output = SPEC.sample(4)
    assert torch.equal(kernel(layer_input, layer_output), torch.zeros_like(layer_output))


def test_a_repeated_decision_gives_the_same_bytes(tmp_path: Path) -> None:
    first = KernelBench(tmp_path / "a", {"run-1": topology()}).decide(decide())[0]
    second = KernelBench(tmp_path / "b", {"run-1": topology()}).decide(decide())[0]
    assert (first.kernel_id, first.checksum, first.size_bytes) == (second.kernel_id, second.checksum, second.size_bytes)


def test_a_repeated_decision_is_compiled_once(bench: KernelBench) -> None:
    assert len(bench.decide(decide())) == 1
    assert not bench.harness.stage.feed([bench.log.add(DECISIONS, decide())])
    failing = decide(1, blueprint="perpetual_motion")
    assert len(bench.harness.stage.feed([bench.log.add(DECISIONS, failing), bench.log.add(DECISIONS, failing)])) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "no_op"},
        {"type": "unload_kernel"},
        {"type": "optimize_parameters"},
        {"dry_run": True},
    ],
)
def test_other_decisions_need_no_kernel(bench: KernelBench, fields: dict[str, Any]) -> None:
    assert bench.decide(decide(**fields)) == []
    assert bench.harness.committed == {DECISIONS.name: 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layer_id": "nowhere"}, "no layer 'nowhere'"),
        ({"layer_id": None}, "needs a layer"),
        ({"blueprint": "perpetual_motion"}, "perpetual_motion"),
        ({"blueprint": "low_rank"}, "does not support conv1d"),
        ({"layer_id": "layer.1"}, "not a JSON object"),
    ],
)
def test_an_impossible_kernel_is_refused_with_the_reason(
    bench: KernelBench, fields: dict[str, Any], reason: str
) -> None:
    (record,) = bench.decide(decide(**fields))
    assert record.status == KernelStatus.REFUSED
    assert reason in record.reason
    assert record.checksum == ""
    assert not bench.store.exists(record.kernel_id)


@pytest.mark.parametrize(
    ("fields", "reason"), [({"parameter_budget": 10}, "budget is 10"), ({"protected": ["layer.0"]}, "protected")]
)
def test_the_topologys_limits_hold(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    (record,) = KernelBench(tmp_path, {"run-1": topology(**fields)}).decide(decide())
    assert record.status == KernelStatus.REFUSED
    assert reason in record.reason


@pytest.mark.parametrize("spec", ["{", 100_000 * "["])
def test_a_layer_spec_that_is_not_json_is_refused(tmp_path: Path, spec: str) -> None:
    made = topology()
    layer = made.layers[0].model_copy(update={"spec": spec})
    (record,) = KernelBench(tmp_path, {"run-1": made.model_copy(update={"layers": [layer]})}).decide(decide())
    assert "not JSON" in record.reason


def test_a_decision_waits_for_its_topology(tmp_path: Path) -> None:
    bench = KernelBench(tmp_path, {})
    assert bench.decide(decide()) == []
    assert bench.harness.committed == {DECISIONS.name: 0}
    bench.harness.take(bench.harness.stage.tick(1000))
    bench.view.records["run-1"] = topology()
    bench.harness.take(bench.harness.stage.tick(2000))
    assert [record.status for record in bench.harness.records(KERNELS)] == [KernelStatus.COMPILED]
    assert bench.harness.stage.open_offsets() == {}


def test_a_decision_waits_for_its_topology_no_longer_than_the_timeout(tmp_path: Path) -> None:
    bench = KernelBench(tmp_path, {})
    bench.decide(decide(0), decide(1))
    timeout_ms = int(1000 * bench.settings.topology_timeout_s)
    bench.harness.take(bench.harness.stage.tick(1000))
    bench.harness.take(bench.harness.stage.tick(999 + timeout_ms))
    assert bench.harness.records(KERNELS) == []
    bench.harness.take(bench.harness.stage.tick(1000 + timeout_ms))
    records = bench.harness.records(KERNELS)
    assert [(record.status, record.reason) for record in records] == 2 * [
        (KernelStatus.REFUSED, "no topology of run run-1 has arrived")
    ]
    assert bench.harness.stage.open_offsets() == {}
    bench.view.records["run-1"] = topology()
    assert bench.decide(decide(0)) == records  # a refused kernel stays refused


def test_a_repeat_of_a_waiting_decision_changes_nothing(tmp_path: Path) -> None:
    bench = KernelBench(tmp_path, {})
    bench.decide(decide(0), decide(1))
    bench.harness.take(bench.harness.stage.tick(1000))
    stage = bench.harness.stage
    repeat = bench.log.add(DECISIONS, decide(0))
    assert not stage.feed([repeat])
    assert stage.open_offsets() == {DECISIONS.name: 0}
    (first, second) = stage.tick(1000 + int(1000 * bench.settings.topology_timeout_s))
    assert (first.source.offset, second.source.offset) == (0, 1)


def test_waiting_decisions_are_bounded_and_the_longest_waiting_are_refused(tmp_path: Path) -> None:
    bench = KernelBench(tmp_path, {})
    bench.settings = bench.settings.model_copy(update={"max_waiting": 2})
    (record,) = bench.decide(decide(0), decide(1), decide(2))
    assert record.decision_id == decision_id("graph-0")
    assert record.status == KernelStatus.REFUSED
    assert bench.harness.committed == {DECISIONS.name: 1}


def test_after_a_restart_a_kernel_is_not_built_again(bench: KernelBench) -> None:
    bench.decide(decide())
    bench.store.delete(kernel_id(decision_id("graph-0")))
    bench.harness.committed = {}
    bench.harness.run()
    assert len(bench.harness.published) == 1
    assert not bench.store.exists(kernel_id(decision_id("graph-0")))
