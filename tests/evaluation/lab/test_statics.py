"""Static networks have the structure that a policy's run ends with, and nobody adapts them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tamiyo.evaluation.lab.baselines import Never, baseline
from tamiyo.evaluation.lab.compare import pairs
from tamiyo.evaluation.lab.hosts import lab_task
from tamiyo.evaluation.lab.hosts.wider import wider
from tamiyo.evaluation.lab.run import GrownKernel, Run, RunResult, RunSpec
from tamiyo.evaluation.lab.statics import UNREAD, StaticNetwork, remember, static_network, train_static
from tamiyo.evaluation.lab.traffic import Job, Traffic, make
from tamiyo.host._reference.tasks import LAB_TASKS, Task
from tamiyo.schemas.errors import ConfigurationError
from tests.evaluation.lab.support import SPEC, finished

STATIC = StaticNetwork("static", "at_once")
WIDER = StaticNetwork("static_wider", "at_once")


@pytest.fixture(scope="module")
def grown() -> RunResult:
    """Return the result of a run that has grown two kernels, which the static networks follow."""
    result = finished("at_once")[0]
    assert len(result.kernels) == 2
    return result


@pytest.fixture(scope="module")
def static(grown: RunResult) -> RunResult:
    remember("at_once", SPEC, grown)
    return train_static(STATIC, SPEC)


def parameters_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_the_static_network_has_the_final_structure_from_the_first_step(grown: RunResult, static: RunResult) -> None:
    assert static.kernels == grown.kernels
    assert static.parameters == grown.parameters
    assert set(static.curve.kernel_parameters) == {grown.curve.kernel_parameters[-1]}
    assert grown.curve.kernel_parameters[0] < grown.curve.kernel_parameters[-1]
    assert static.adaptations == []
    assert static.steps == grown.steps


def test_its_network_is_named_and_shaped_as_that_of_the_run(grown: RunResult) -> None:
    with Run(SPEC, baseline("at_once")) as run:
        run.finish()
        ended = parameters_of(run.workload.model)
    with Run(replace(SPEC, kernels=tuple(grown.kernels)), Never(), settings=UNREAD) as run:
        begun = parameters_of(run.workload.model)
        trained = {id(p) for group in run.workload.optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in run.workload.model.parameters()}
    assert {name: value.shape for name, value in begun.items()} == {name: v.shape for name, v in ended.items()}


def test_it_begins_as_the_run_did_and_its_kernels_as_they_were_loaded(grown: RunResult) -> None:
    fresh = lab_task(SPEC.task).network(SPEC.seed)
    inputs = lab_task(SPEC.task).validation.inputs
    with Run(replace(SPEC, kernels=tuple(grown.kernels)), Never(), settings=UNREAD) as run:
        torch.testing.assert_close(run.workload.model(inputs), fresh(inputs), atol=1e-5, rtol=0)
        before = parameters_of(run.workload.model)
        run.mute()
        run.advance(1)
        after = parameters_of(run.workload.model)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("kernels" in name for name in moved), "no kernel learns from the first step"


def test_every_step_costs_what_the_grown_run_pays_in_the_end(grown: RunResult, static: RunResult) -> None:
    step = (static.curve.compute[-1] - static.curve.compute[0]) / (static.curve.step[-1] - static.curve.step[0])
    last = (grown.curve.compute[-1] - grown.curve.compute[-2]) / (grown.curve.step[-1] - grown.curve.step[-2])
    assert step == pytest.approx(last)
    assert static.curve.compute[0] == pytest.approx(50 * step)


def test_it_is_compared_at_the_compute_of_never_adapting(grown: RunResult, static: RunResult) -> None:
    never = finished("never")[0]
    assert static.compute == never.compute == grown.compute
    assert static.budget == grown.budget
    runs = [Traffic(Job("digits", name, 3), each) for name, each in (("never", never), ("static", static))]
    (pair,) = pairs(runs)
    within = [i for i, compute in enumerate(static.curve.compute) if compute <= never.compute * (1 + 1e-9)]
    assert 0 < len(within) < len(static.curve.step)
    best = min(within, key=static.curve.validation.__getitem__)
    lowest = min(range(len(never.curve.step)), key=never.curve.validation.__getitem__)
    assert pair.equal_compute == pytest.approx(math.log(never.curve.test[lowest] / static.curve.test[best]))


def test_the_same_seed_gives_the_same_bits(grown: RunResult, static: RunResult) -> None:
    remember("at_once", SPEC, grown)
    assert train_static(STATIC, SPEC) == static
    assert train_static(WIDER, SPEC) == train_static(WIDER, SPEC)


def test_a_static_network_makes_the_run_that_it_follows_unless_that_was_just_made(static: RunResult) -> None:
    short = RunSpec("digits", seed=4, steps=150)
    followed = train_static(STATIC, short)
    assert followed.kernels == finished("at_once", short)[0].kernels
    assert make(Job("digits", "static:at_once", 3, steps=300)).result == static
    remember("at_once", SPEC, replace(finished("never")[0], kernels=[]))
    assert train_static(STATIC, SPEC).kernels == []


def test_where_nothing_grew_it_is_the_run_that_never_adapts() -> None:
    never = finished("never")[0]
    remember("never", SPEC, never)
    for kind in ("static", "static_wider"):
        assert train_static(StaticNetwork(kind, "never"), SPEC) == never


def test_the_wider_network_has_about_as_many_parameters_and_no_kernels(grown: RunResult) -> None:
    remember("at_once", SPEC, grown)
    found = train_static(WIDER, SPEC)
    target = grown.parameters + grown.curve.kernel_parameters[-1]
    assert found.kernels == []
    assert found.parameters == pytest.approx(target, rel=0.05)
    assert (found.compute, found.budget) == (grown.compute, grown.budget)


@pytest.mark.parametrize("name", [*LAB_TASKS, "charconv", "mixer", "digits_deep", "mnist5k_flat", "host-1"])
def test_the_networks_of_all_tasks_can_be_made_wider(name: str) -> None:
    task = lab_task(name)
    plain = sum(p.numel() for p in task.network(0).parameters())
    same = wider(task, plain).network(0)
    assert {n: v.shape for n, v in same.named_parameters()} == {
        n: v.shape for n, v in task.network(0).named_parameters()
    }
    network = wider(task, 2 * plain).network(0)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(2 * plain, rel=0.15)
    with torch.no_grad():
        assert network(task.train.inputs[:2]).shape == task.network(0)(task.train.inputs[:2]).shape
    again = wider(task, 2 * plain).network(0)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))


def test_a_network_is_never_made_narrower_and_an_unknown_one_is_refused() -> None:
    task = lab_task("digits")
    assert sum(p.numel() for p in wider(task, 1).network(0).parameters()) == 415
    strange: Task = replace(task, make_network=lambda: nn.Bilinear(2, 2, 2))
    with pytest.raises(ConfigurationError, match="Bilinear cannot be scaled"):
        wider(strange, 1000)


def test_names_of_static_networks() -> None:
    assert static_network("static") == StaticNetwork("static", "builtin")
    assert static_network("static_wider:random:0.3") == StaticNetwork("static_wider", "random:0.3")
    assert static_network("heuristic") is None
    with pytest.raises(ConfigurationError, match="no baseline 'nobody'"):
        static_network("static:nobody")
    with pytest.raises(ConfigurationError, match="expected a policy after static:"):
        static_network("static:static_wider")


def test_a_result_remembers_its_kernels_and_older_ones_have_none(static: RunResult) -> None:
    values = static.to_dict()
    assert RunResult.from_dict(values) == static
    assert all(isinstance(each, GrownKernel) for each in RunResult.from_dict(values).kernels)
    del values["kernels"]
    assert RunResult.from_dict(values).kernels == []
