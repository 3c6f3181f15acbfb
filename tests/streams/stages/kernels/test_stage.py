import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.kernels.store import KernelStore
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


class Bench:
    """A stage, its store and the topology view."""

    def __init__(self, url: Path, topologies: dict[str, ModelTopology]) -> None:
        self.view = FixedView(topologies)
        self.settings = KernelSettings(store_url=f"file://{url}")
        self.store = KernelStore(self.settings.store_url)
        self.log = Log()
        self.shell = StageHarness(lambda: KernelsStage(0, self.settings, {TOPOLOGY.name: self.view}), self.log.messages)

    def decide(self, *decisions: AdaptationDecision) -> list[Any]:
        for decision in decisions:
            self.log.add(DECISIONS, decision)
        return self.shell.run().records(KERNELS)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, {"run-1": topology()})


def test_a_load_gets_a_kernel_that_preserves_the_function(bench: Bench) -> None:
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
    first = Bench(tmp_path / "a", {"run-1": topology()}).decide(decide())[0]
    second = Bench(tmp_path / "b", {"run-1": topology()}).decide(decide())[0]
    assert (first.kernel_id, first.checksum, first.size_bytes) == (second.kernel_id, second.checksum, second.size_bytes)


def test_a_decision_told_twice_is_compiled_once(bench: Bench) -> None:
    assert len(bench.decide(decide(), decide())) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "no_op"},
        {"type": "unload_kernel"},
        {"type": "optimize_parameters"},
        {"dry_run": True},
    ],
)
def test_other_decisions_ask_for_nothing(bench: Bench, fields: dict[str, Any]) -> None:
    assert bench.decide(decide(**fields)) == []
    assert bench.shell.committed == {DECISIONS.name: 1}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"layer_id": "nowhere"}, "no layer 'nowhere'"),
        ({"layer_id": None}, "names a layer"),
        ({"blueprint": "perpetual_motion"}, "perpetual_motion"),
        ({"blueprint": "low_rank"}, "does not support conv1d"),
        ({"layer_id": "layer.1"}, "not a JSON object"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(bench: Bench, fields: dict[str, Any], reason: str) -> None:
    (record,) = bench.decide(decide(**fields))
    assert record.status == KernelStatus.REFUSED
    assert reason in record.reason
    assert record.checksum == ""
    assert not bench.store.exists(record.kernel_id)


@pytest.mark.parametrize(
    ("fields", "reason"), [({"parameter_budget": 10}, "budget is 10"), ({"protected": ["layer.0"]}, "protected")]
)
def test_the_topologys_limits_hold(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    (record,) = Bench(tmp_path, {"run-1": topology(**fields)}).decide(decide())
    assert record.status == KernelStatus.REFUSED
    assert reason in record.reason


def test_a_spec_that_is_no_json_is_refused(tmp_path: Path) -> None:
    made = topology()
    layer = made.layers[0].model_copy(update={"spec": "{"})
    (record,) = Bench(tmp_path, {"run-1": made.model_copy(update={"layers": [layer]})}).decide(decide())
    assert "not JSON" in record.reason


def test_a_topology_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    assert bench.decide(decide()) == []
    assert bench.shell.committed == {DECISIONS.name: 0}
    bench.shell.take(bench.shell.stage.tick(1000))
    bench.view.records["run-1"] = topology()
    bench.shell.take(bench.shell.stage.tick(2000))
    assert [record.status for record in bench.shell.records(KERNELS)] == [KernelStatus.COMPILED]
    assert bench.shell.stage.open_offsets() == {}


def test_a_topology_that_never_comes_is_a_refusal(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    bench.decide(decide())
    bench.shell.take(bench.shell.stage.tick(1000))
    bench.shell.take(bench.shell.stage.tick(1000 + int(1000 * bench.settings.topology_timeout_s)))
    (record,) = bench.shell.records(KERNELS)
    assert "never came" in record.reason


def test_those_that_wait_are_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {})
    bench.settings = bench.settings.model_copy(update={"max_waiting": 2})
    (record,) = bench.decide(decide(0), decide(1), decide(2))
    assert record.decision_id == decision_id("graph-0")
    assert record.status == KernelStatus.REFUSED


def test_after_a_restart_a_kernel_is_not_built_again(bench: Bench) -> None:
    bench.decide(decide())
    bench.store.delete(kernel_id(decision_id("graph-0")))
    bench.shell.committed = {}
    bench.shell.run()
    assert len(bench.shell.published) == 1
    assert not bench.store.exists(kernel_id(decision_id("graph-0")))
