"""The state of an optimizer that has grown is saved, checked and resumed."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.schemas.errors import KernelError
from tests.host.adaptation.grown_networks import X, load, model, step
from tests.host.adaptation.wrapped_optimizers import Several


@pytest.mark.parametrize("names", [False, True], ids=["positions", "names"])
def test_a_grown_run_resumes_bit_for_bit(names: bool) -> None:
    def fresh(net: nn.Module) -> Adam:
        return Adam(net.named_parameters() if names else net.parameters(), 1e-2)

    net = model()
    optimizer = fresh(net)
    growing = GrowingOptimizer(optimizer)
    load(net, 2, growing)  # the later layer first: positions in the optimiser are not the model's order
    step(net, optimizer)
    load(net, 0, growing)
    growing.scale_learning_rate(net[0].base.parameters(), 0.5)
    for _ in range(3):
        step(net, optimizer)
    buffer = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": growing.state_dict(net)}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)

    again = model()
    resumed_optimizer = fresh(again)  # made before the kernels are there
    resumed = GrowingOptimizer(resumed_optimizer)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(again, saved["optimizer"])
    for _ in range(3):
        step(net, optimizer)
        step(again, resumed_optimizer)
    separate = dict(again.named_parameters())
    assert len(separate) == 12
    assert all(torch.equal(value, separate[name]) for name, value in net.named_parameters())


def test_several_optimizers_and_foreign_parameters_resume_bit_for_bit() -> None:
    def fresh(net: nn.Sequential) -> tuple[nn.Parameter, list[Optimizer]]:
        weight = nn.Parameter(torch.ones(2))
        return weight, [
            SGD([weight, *net[0].parameters()], 0.1, momentum=0.9),
            Adam([{"params": net[2].parameters()}, {"params": []}], 0.1),
        ]

    def run(net: nn.Module, weight: nn.Parameter, optimizers: list[Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        (weight.square().sum() * (net(X) - 1.0).square().mean()).backward()
        for optimizer in optimizers:
            optimizer.step()

    net = model()
    weight, optimizers = fresh(net)
    growing = GrowingOptimizer(Several(*optimizers), net)
    for at in (2, 0):
        load(net, at, growing)
        run(net, weight, optimizers)
    growing.scale_learning_rate(net[2].parameters(), 0.5)
    saved = copy.deepcopy({"model": net.state_dict(), "optimizer": growing.state_dict(net)})
    again = model()
    other_weight, others = fresh(again)
    other_weight.data.copy_(weight.detach())
    resumed = GrowingOptimizer(Several(*others), again)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(again, saved["optimizer"])
    kept = copy.deepcopy(saved["optimizer"])
    for _ in range(3):
        run(net, weight, optimizers)
        run(again, other_weight, others)
    assert torch.equal(weight, other_weight)
    theirs = dict(again.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in net.named_parameters())
    for entry, before in zip(saved["optimizer"]["optimizers"], kept["optimizers"], strict=True):
        for name, values in entry["state"].items():  # training on leaves what was loaded as it is
            assert all(torch.equal(v, before["state"][name][k]) for k, v in values.items() if isinstance(v, Tensor))


def _edit(saved: dict[str, Any], *path: Any, to: Any) -> None:
    *way, last = path
    place: Any = saved
    for key in way:
        place = place[key]
    place[last] = to


STATE = ("optimizers", 0, "state", "0.base.weight")
UNFIT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "more_optimizers": (lambda s: s["optimizers"].append(s["optimizers"][0]), "2 optimizers, the loop has 1"),
    "class": (lambda s: _edit(s, "optimizers", 0, "class", to="SGD"), "of SGD, the optimizer is Adam"),
    "groups": (lambda s: s["optimizers"][0]["groups"].append({"params": []}), "2 param groups, the optimizer has 1"),
    "shape": (lambda s: _edit(s, *STATE, "exp_avg", to=torch.zeros(3)), r"exp_avg of parameter 0\.base\.weight has"),
    "transposed": (lambda s: _edit(s, *STATE, "exp_avg", to=torch.zeros(4, 6)), r"has shape \(4, 6\)"),
    "other_network": (lambda s: _edit(s, "optimizers", 0, "shapes", "0.base.weight", to=[6, 9]), r"with \(6, 9\)"),
    "name": (lambda s: s["optimizers"][0]["groups"][0]["params"].append("9.weight"), "no parameter 9.weight"),
    "wrappers": (lambda s: s["optimizers"][0]["wrappers"].append({}), "that of 1 wrappers"),
    "no_state": (lambda s: s["optimizers"][0].pop("state"), "malformed"),
    "no_groups": (lambda s: s["optimizers"][0].pop("groups"), "malformed"),
    "torchs_own": (lambda s: s.pop("optimizers"), "malformed"),
    "scales": (lambda s: s["scales"].update({"0.base.weight": 7.0}), "scales are malformed"),
    "scales_name": (lambda s: s["scales"].update({"9.weight": 0.5}), "scales are malformed"),
    "torch_refuses": (lambda s: _edit(s, *STATE, to={"step": {1, 2, None}, "exp_avg": object()}), ""),
}


@pytest.mark.parametrize(("change", "reason"), UNFIT.values(), ids=UNFIT)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    net = model()
    optimizer = Adam(net.parameters(), 1e-2)
    growing = GrowingOptimizer(optimizer, net)
    load(net, 0, growing)
    step(net, optimizer)
    saved = copy.deepcopy(growing.state_dict(net))
    growing.scale_learning_rate(net[2].parameters(), 0.5)
    step(net, optimizer)
    before = copy.deepcopy(growing.state_dict(net))
    objects = [id(optimizer.param_groups), id(optimizer.param_groups[0]), id(optimizer.state)]
    change(saved)
    if reason:
        with pytest.raises(KernelError, match=reason):
            growing.load_state_dict(net, saved)
    else:

        def fail(*_: Any) -> None:
            raise ValueError("out of luck")

        optimizer.register_load_state_dict_post_hook(fail)
        _edit(saved, *STATE, to=before["optimizers"][0]["state"]["0.base.weight"])
        with pytest.raises(KernelError, match="ValueError: out of luck"):
            growing.load_state_dict(net, saved)
    after = growing.state_dict(net)
    assert objects == [id(optimizer.param_groups), id(optimizer.param_groups[0]), id(optimizer.state)]
    assert after["scales"] == before["scales"]
    (mine,), (theirs,) = after["optimizers"], before["optimizers"]
    assert mine["groups"] == theirs["groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    assert all(torch.equal(v, theirs["state"][n][k]) for n, values in mine["state"].items() for k, v in values.items())
    step(net, optimizer)


def test_a_state_can_be_checked_before_the_model_has_loaded_its_kernels() -> None:
    net = model()
    growing = GrowingOptimizer(Adam(net.parameters(), 1e-2), net)
    load(net, 0, growing)
    saved, shapes = growing.state_dict(net), {name: p.shape for name, p in net.named_parameters()}
    fresh = model()
    other = GrowingOptimizer(Adam(fresh.parameters(), 1e-2), fresh)
    other.require_loadable(fresh, saved, shapes)
    with pytest.raises(KernelError, match=r"no parameter 0\.kernels\.0\.expand\.bias"):
        other.require_loadable(fresh, saved)
    with pytest.raises(KernelError, match=r"0\.kernels\.0\.last\.bias has shape \(7,\)"):
        other.require_loadable(fresh, saved, {**shapes, "0.kernels.0.last.bias": (7,)})
