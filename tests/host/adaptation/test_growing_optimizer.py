"""An optimiser that grows, shrinks and slows down in place, against plain torch."""

import copy
import io
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from tamiyo.host.adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tests.support.layers import kernel

Params = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Params], Optimizer]] = {
    "adam": lambda p: Adam(p, 1e-2, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, 1e-2, weight_decay=0.1),
    "adamw_foreach": lambda p: AdamW(p, 1e-2, amsgrad=True, foreach=True),
    "adam_fused": lambda p: Adam(p, 1e-2, fused=True),
    "sgd": lambda p: SGD(p, 1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
}
SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=30, cycle_momentum=False),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.StepLR(o, 2)], milestones=[3]
    ),
}
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    first = KasminaLayer(nn.Linear(4, 6), layer_id="first", ramp_steps=2)
    made = nn.Sequential(first, nn.Tanh(), KasminaLayer(nn.Linear(6, 3), layer_id="second", ramp_steps=2))
    made(X)
    return made


def step(net: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    (net(X) - 1.0).square().mean().backward()
    optimizer.step()


def load(net: nn.Sequential, at: int, growing: GrowingOptimizer, kernel_id: str = "aaaaaaaa") -> nn.Module:
    wrapped = net[at]
    assert isinstance(wrapped, KasminaLayer)
    built = kernel(wrapped.spec, "parallel_expansion")
    wrapped.load_kernel(built, kernel_id=kernel_id, blueprint="parallel_expansion", step=0)
    growing.add(built, beside=wrapped.base.parameters(), name=f"{at}.kernels.0")
    return built


def snapshot(optimizer: Optimizer, parameters: Params) -> list[dict[str, Tensor]]:
    return [{k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)} for p in parameters]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_load_and_an_unload_keep_all_other_state(make: Callable[[Params], Optimizer]) -> None:
    net = model()
    optimizer = make(net.parameters())
    growing = GrowingOptimizer(optimizer)
    for _ in range(3):
        step(net, optimizer)
    old = list(net.parameters())
    before, values, options = snapshot(optimizer, old), [p.clone() for p in old], dict(optimizer.param_groups[0])
    built = load(net, 0, growing)
    after = snapshot(optimizer, old)
    assert len(before[0]) >= 1
    assert all(torch.equal(b[k], a[k]) for b, a in zip(before, after, strict=True) for k in b)
    assert all(torch.equal(p, v) for p, v in zip(old, values, strict=True))
    assert len(optimizer.param_groups) == 1
    now = optimizer.param_groups[0]
    assert {k: v for k, v in now.items() if k != "params"} == {k: v for k, v in options.items() if k != "params"}
    assert [id(p) for p in now["params"]] == [id(p) for p in (*old, *built.parameters())]

    last = [p.clone() for p in built.parameters()]
    step(net, optimizer)
    step(net, optimizer)
    assert all(not torch.equal(a, b) for a, b in zip(last, built.parameters(), strict=True))
    before = snapshot(optimizer, old)
    assert growing.drop(built.parameters()) == 4
    after = snapshot(optimizer, old)
    assert all(torch.equal(b[k], a[k]) for b, a in zip(before, after, strict=True) for k in b)
    assert set(map(id, optimizer.state)) == set(map(id, old))
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in old]
    assert all(p.grad is None for p in built.parameters())


def test_growth_at_a_dead_kernel_does_not_change_what_the_others_learn() -> None:
    """A kernel whose delta stays 0 (except the lr of its group) leaves the rest of training bit for bit as it was."""
    grown, plain = model(), model()
    optimizers = [Adam(net.parameters(), 1e-2) for net in (grown, plain)]
    for _ in range(2):
        for net, optimizer in zip((grown, plain), optimizers, strict=True):
            step(net, optimizer)
    built = load(grown, 0, GrowingOptimizer(optimizers[0]))
    for parameter in built.parameters():
        parameter.requires_grad_(False)
    for _ in range(3):
        for net, optimizer in zip((grown, plain), optimizers, strict=True):
            step(net, optimizer)
    old = dict(grown.named_parameters())
    assert all(torch.equal(old[name], value) for name, value in plain.named_parameters())


def test_a_kernel_joins_the_group_of_its_layer() -> None:
    net = model()
    optimizer = AdamW(
        [
            {"params": list(net[0].parameters()), "lr": 0.1},
            {"params": list(net[2].parameters()), "lr": 0.2, "weight_decay": 0.0},
        ]
    )
    growing = GrowingOptimizer(optimizer)
    built = load(net, 2, growing)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]
    assert growing.learning_rate(next(built.parameters())) == 0.2
    assert growing.add(built, beside=net[2].base.parameters()) == 1  # again: nothing twice
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]


def test_beside_a_frozen_layer_a_kernel_joins_the_first_group() -> None:
    net = model()
    optimizer = SGD(net[0].parameters(), 0.5)
    growing = GrowingOptimizer(optimizer)
    built = load(net, 2, growing)
    assert growing.learning_rate(next(built.parameters())) == 0.5


def test_named_parameters_stay_named() -> None:
    net = model()
    optimizer = Adam(net.named_parameters(), 1e-2)
    growing = GrowingOptimizer(optimizer)
    built = load(net, 0, growing)
    assert optimizer.param_groups[0]["param_names"][4:] == [
        "0.kernels.0.expand.weight",
        "0.kernels.0.expand.bias",
        "0.kernels.0.last.weight",
        "0.kernels.0.last.bias",
    ]
    step(net, optimizer)
    optimizer.state_dict()
    growing.drop(built.parameters())
    assert optimizer.param_groups[0]["param_names"] == [
        name for name, _ in net.named_parameters() if "kern" not in name
    ]


def test_forgotten_state_starts_anew() -> None:
    net = model()
    optimizer = Adam(net.parameters(), 1e-2)
    growing = GrowingOptimizer(optimizer)
    step(net, optimizer)
    weight, bias = net[0].base.parameters()
    optimizer.state[weight]["exp_avg"].fill_(torch.nan)
    growing.forget([weight])
    step(net, optimizer)
    assert bool(weight.isfinite().all())
    assert (float(optimizer.state[weight]["step"]), float(optimizer.state[bias]["step"])) == (1.0, 2.0)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_scaled_layer_learns_as_if_its_group_had_that_rate(
    make: Callable[[Params], Optimizer], scheduler: Callable[[Optimizer], lr_scheduler.LRScheduler]
) -> None:
    """Against plain torch: each layer its own optimiser and scheduler, the lr corrected before each step."""
    scaled, separate = model(), model()
    optimizer = make(scaled.parameters())
    growing = GrowingOptimizer(optimizer)
    schedule = scheduler(optimizer)
    references = [make(separate[0].parameters()), make(separate[2].parameters())]
    schedules = [scheduler(each) for each in references]
    for count in range(8):
        if count in (3, 5):
            assert growing.scale_learning_rate(scaled[0].parameters(), 0.5) == (0.5 if count == 3 else 0.25)
        scale = 1.0 if count < 3 else 0.5 if count < 5 else 0.25
        step(scaled, optimizer)
        schedule.step()
        (group,) = references[0].param_groups
        scheduled = group["lr"]
        group["lr"] = scheduled * scale
        for each in references:
            each.zero_grad()
        (separate(X) - 1.0).square().mean().backward()
        for each in references:
            each.step()
        group["lr"] = scheduled
        for other in schedules:
            other.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(group["lr"])
        for mine, reference in zip(scaled.parameters(), separate.parameters(), strict=True):
            assert torch.allclose(mine, reference, atol=2e-6), count
    assert growing.learning_rate(scaled[0].base.weight) == pytest.approx(0.25 * optimizer.param_groups[0]["lr"])
    assert growing.learning_rate(scaled[2].base.weight) == optimizer.param_groups[0]["lr"]


def test_closing_ends_the_scale() -> None:
    net = model()
    optimizer = SGD(net.parameters(), 0.1)
    growing = GrowingOptimizer(optimizer)
    growing.scale_learning_rate(net[0].parameters(), 0.5)
    growing.close()
    before = net[0].base.weight.detach().clone()
    step(net, optimizer)
    moved = net[0].base.weight.detach() - before
    assert torch.allclose(moved, -0.1 * net[0].base.weight.grad, atol=1e-7)


def test_invalid_arguments_are_refused() -> None:
    net = model()
    with pytest.raises(ConfigurationError, match="LBFGS cannot take new parameters"):
        GrowingOptimizer(torch.optim.LBFGS(net.parameters()))
    growing = GrowingOptimizer(SGD(net[0].parameters(), 0.1))
    for factor in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="factor must be in"):
            growing.scale_learning_rate(net[0].parameters(), factor)
    with pytest.raises(KernelError, match="none of these parameters"):
        growing.scale_learning_rate(net[2].parameters(), 0.5)
    with pytest.raises(KernelError, match="does not train this parameter"):
        growing.learning_rate(net[2].base.weight)
    with pytest.raises(ConfigurationError, match="Rprop"):
        GrowingOptimizer(torch.optim.Rprop(net.parameters())).scale_learning_rate(net.parameters(), 0.5)


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


def test_states_that_do_not_fit_are_refused() -> None:
    net = model()
    growing = GrowingOptimizer(Adam(net.parameters(), 1e-2))
    load(net, 0, growing)
    saved = growing.state_dict(net)
    with pytest.raises(KernelError, match=r"no parameter 0\.kernels\.0\.expand\.bias"):
        GrowingOptimizer(Adam(model().parameters())).load_state_dict(model(), saved)
    other = model()
    two = Adam([{"params": other[0].parameters()}, {"params": other[2].parameters()}])
    with pytest.raises(KernelError, match="has 1 param groups, the optimiser has 2"):
        GrowingOptimizer(two).load_state_dict(other, saved)
    with pytest.raises(KernelError, match=r"not the model's, of shapes \[\(6, 4\), \(6,\)"):
        growing.state_dict(copy.deepcopy(net))
