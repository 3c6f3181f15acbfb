"""An optimiser that grows, shrinks and slows down in place, against plain torch."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.schemas.errors import AdaptationRefused, ConfigurationError, KernelError
from tests.host.adaptation.grown_networks import OPTIMIZERS, SCHEDULERS, Params, X, load, model, snapshot, step
from tests.host.adaptation.wrapped_optimizers import SAM, Lookahead, Passing, Prepared, Tethered
from tests.support.layers import kernel


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
    growing.add(built, beside=net[2].base.parameters())  # again: nothing twice
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]


@pytest.mark.parametrize("frozen", ["left out", "no gradient"])
def test_beside_a_frozen_layer_no_kernel_joins(frozen: str) -> None:
    net = model()
    net[2].base.requires_grad_(frozen == "left out")
    optimizer = SGD(net[0].parameters() if frozen == "left out" else net.parameters(), 0.5)
    growing = GrowingOptimizer(optimizer, net)
    before = [list(group["params"]) for group in optimizer.param_groups]
    refusal = growing.refusal(net[2].base.parameters())
    assert refusal is not None
    assert refusal.limit == "untrained_layer"
    with pytest.raises(AdaptationRefused, match="no optimizer trains this layer"):
        growing.add(kernel(net[2].spec), beside=net[2].base.parameters())
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [list(map(id, b)) for b in before]
    assert growing.refusal(net[0].base.parameters()) is None


def test_a_kernel_joins_the_optimizer_of_its_layer() -> None:
    net = model()
    first, second = SGD(net[0].parameters(), 0.1), Adam(net[2].parameters(), 0.2)
    growing = GrowingOptimizer([first, Passing(second)], net)
    built = load(net, 2, growing)
    assert [len(o.param_groups[0]["params"]) for o in (first, second)] == [2, 6]
    assert growing.learning_rate(next(built.parameters())) == 0.2
    assert growing.scale_learning_rate([*net[0].parameters(), *net[2].parameters()], 0.5) == 0.5
    assert growing.learning_rate(net[0].base.weight) == 0.05
    assert growing.drop(built.parameters()) == 4
    assert [len(o.param_groups[0]["params"]) for o in (first, second)] == [2, 2]


def test_beside_an_optimizer_that_cannot_grow_a_kernel_joins_the_other_one_of_its_layer() -> None:
    """Matrices to Muon, all else to AdamW; a layer that only Muon trains stays as it is."""
    net = nn.Sequential(KasminaLayer(nn.Linear(4, 6)), KasminaLayer(nn.Linear(6, 3, bias=False)))
    net(X)
    muon = torch.optim.Muon([net[0].base.weight, net[1].base.weight])
    adamw = AdamW([net[0].base.bias])
    growing = GrowingOptimizer([muon, adamw], net)
    load(net, 0, growing)
    assert [len(o.param_groups[0]["params"]) for o in (muon, adamw)] == [2, 5]
    refusal = growing.refusal(net[1].base.parameters())
    assert refusal is not None
    assert (refusal.limit, "takes matrices only" in str(refusal)) == ("optimizer_cannot_grow", True)


def test_a_group_for_matrices_only_takes_no_kernel() -> None:
    class MuonWithAdam(SGD):
        """As the implementations that mark the groups of matrices."""

    net = model()
    optimizer = MuonWithAdam(
        [{"params": [net[0].base.weight, net[2].base.weight], "use_muon": True},
         {"params": [net[0].base.bias], "use_muon": False}], 0.1,
    )  # fmt: skip
    growing = GrowingOptimizer(optimizer, net)
    load(net, 0, growing)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 5]
    assert growing.refusal(net[2].base.parameters()) is not None


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


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS cannot take new parameters during training: it keeps one history"),
        (lambda p: Passing(torch.optim.LBFGS(p)), "Passing > LBFGS cannot take new parameters"),
        (lambda p: torch.optim.Muon([q for q in p if q.ndim == 2]), "takes matrices only"),
        (lambda p: torch.optim.SparseAdam(list(p)), "takes sparse gradients only"),
        (lambda p: Adam(p, differentiable=True), "records its steps for autograd"),
        (lambda p: Tethered(Adam(p)), "a wrapper keeps start for every parameter"),
    ],
)
def test_optimizers_that_cannot_grow_are_refused(make: Callable[[Params], Optimizer], reason: str) -> None:
    net = model()
    with pytest.raises(ConfigurationError, match=reason):
        GrowingOptimizer(make(net.parameters()), net)


def test_zero_redundancy_is_refused() -> None:
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("torch has no distributed package")
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        net = model()
        optimizer = ZeroRedundancyOptimizer(net.parameters(), optimizer_class=Adam, lr=0.1)
        with pytest.raises(ConfigurationError, match="divided the parameters among the ranks"):
            GrowingOptimizer(optimizer, net)
    finally:
        distributed.destroy_process_group()


def test_invalid_arguments_are_refused() -> None:
    net = model()
    growing = GrowingOptimizer(SGD(net[0].parameters(), 0.1))
    for factor in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="factor must be in"):
            growing.scale_learning_rate(net[0].parameters(), factor)
    with pytest.raises(AdaptationRefused, match="no optimizer trains these"):
        growing.scale_learning_rate(net[2].parameters(), 0.5)
    with pytest.raises(KernelError, match="no optimizer trains this parameter"):
        growing.learning_rate(net[2].base.weight)


EVERY: dict[str, Callable[[Params], Any]] = {
    **OPTIMIZERS,
    **{
        kind.__name__.lower(): kind
        for kind in (
            torch.optim.Adadelta, torch.optim.Adafactor, torch.optim.Adagrad, torch.optim.Adamax, torch.optim.ASGD,
            torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop, SGD,
        )
    },
    "adagrad_start": lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.5),
    "adagrad_fused": lambda p: torch.optim.Adagrad(p, 0.1, fused=True),
    "adam_maximize": lambda p: Adam(p, 1e-3, maximize=True, foreach=True),
    "prepared": lambda p: Prepared(p, 0.05, start=0.3),
    "lookahead": lambda p: Lookahead(Adam(p, 1e-2), k=2),
    "lookahead_late": lambda p: Passing(Lookahead(Adam(p, 1e-2), k=2, at_once=False)),
    "sam": lambda p: SAM(p, SGD, lr=0.1, momentum=0.9),
}  # fmt: skip


def loop(net: nn.Module, optimizer: Any, steps: int = 1) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(X) - 1.0).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimizer, SAM):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_every_optimizer_grows_shrinks_and_resumes_in_the_middle_of_training(make: Callable[[Params], Any]) -> None:
    net = model()
    optimizer = make(net.parameters())
    growing = GrowingOptimizer(optimizer, net)
    loop(net, optimizer, 3)
    first, second = load(net, 0, growing), load(net, 2, growing, "bbbbbbbb")
    before = [p.clone() for p in second.parameters()]
    loop(net, optimizer, 4)
    assert all(not torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    growing.forget([next(second.parameters())])  # as the recovery does after it has replaced the values
    loop(net, optimizer, 3)
    # torch.optim's loading of a checkpoint is for positions; this one is by name, in an optimizer of before the growth.
    buffer = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": growing.state_dict(net)}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again = model()
    resumed_optimizer = make(again.parameters())
    resumed = GrowingOptimizer(resumed_optimizer, again)
    loop(again, resumed_optimizer, 1)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(again, saved["optimizer"])
    for lookahead, other in zip(_all(optimizer), _all(resumed_optimizer), strict=True):
        if isinstance(lookahead, Lookahead):
            other.count = lookahead.count
    loop(net, optimizer, 5)
    loop(again, resumed_optimizer, 5)
    theirs = dict(again.named_parameters())
    assert len(theirs) == 12
    assert all(torch.equal(value, theirs[name]) for name, value in net.named_parameters())
    assert all(bool(value.isfinite().all()) for value in net.parameters())

    unloaded = [net[0].kernels["0"], net[2].kernels["0"]]
    assert unloaded == [first, second]
    for at, each in ((0, first), (2, second)):
        net[at].kernels.clear()
        net[at].seeds[0].clear()
        net[at]._refresh()
        assert growing.drop(each.parameters()) == 4
    loop(net, optimizer, 3)
    gone = {id(p) for each in unloaded for p in each.parameters()}
    for wrapper in _all(optimizer):
        assert not gone & {id(p) for group in wrapper.param_groups for p in group["params"]}
        assert not gone & {id(p) for p in wrapper.state}


def _all(optimizer: Any) -> list[Any]:
    inner = getattr(optimizer, "optimizer", getattr(optimizer, "base_optimizer", None))
    return [optimizer, *(() if inner is None else _all(inner))]


@pytest.mark.parametrize("make", [EVERY["adam"], EVERY["prepared"], EVERY["lookahead"]])
def test_a_new_parameter_learns_as_in_an_optimizer_of_its_own(make: Callable[[Params], Any]) -> None:
    """The state of a parameter that joins late equals that of a fresh optimizer, Lookahead's slow weights included."""
    old, late = nn.Linear(4, 3), nn.Linear(4, 3)
    joined, alone = make(old.parameters()), make(late.parameters())
    growing = GrowingOptimizer(joined, old)
    for p in old.parameters():
        p.grad = torch.ones_like(p)
    joined.step()
    joined.step()  # Lookahead's second: both begin a new period
    twin = copy.deepcopy(late)
    growing.add(twin, beside=old.parameters())
    for count in range(6):
        for p in (*old.parameters(), *late.parameters(), *twin.parameters()):
            p.grad = torch.full_like(p, 1.0 + count)
        joined.step()
        alone.step()
    assert all(torch.equal(a, b) for a, b in zip(late.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("make", [EVERY["lookahead"], EVERY["sam"]])
def test_a_wrapper_that_takes_part_in_the_steps_is_not_copied_without_it(make: Callable[[Params], Any]) -> None:
    net = model()
    optimizer = make(net.parameters())
    growing = GrowingOptimizer(optimizer, net)
    memo: dict[int, Any] = {}
    copy.deepcopy(net, memo)
    with pytest.raises(KernelError, match="a wrapper takes part in its steps"):
        growing.copied(memo)
