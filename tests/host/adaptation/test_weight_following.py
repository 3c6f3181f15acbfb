"""Averaged weights follow a model that grows and shrinks, through a real run with a transport in memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tamiyo.host._adaptation.weight_following import WeightFollower
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.schemas.errors import ConfigurationError
from tests.support.layers import attached_layers
from tests.support.runs import Run, data, run

DECAY = 0.75


class ByPosition:
    """A deep copy whose parameters are averaged in pairs."""

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def update_parameters(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.module.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - DECAY)


class ByStateDict(ByPosition):
    """As timm's ModelEmaV2: every value of the state dict in pairs, whatever it is."""

    def update_parameters(self, model: nn.Module) -> None:
        with torch.no_grad():
            pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
            for mine, theirs in pairs:
                mine.copy_(DECAY * mine + (1 - DECAY) * theirs)


AVERAGES: dict[str, Callable[[nn.Module], Any]] = {
    "swa": AveragedModel,
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "ema_buffers": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True),
    "avg_fn": lambda m: AveragedModel(m, avg_fn=lambda mine, theirs, _: DECAY * mine + (1 - DECAY) * theirs),
    "position": ByPosition,
    "state_dict": ByStateDict,
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4),
        nn.ReLU(), nn.Linear(4, 2),
    )  # fmt: skip


class Reference:
    """An independent average by kernel id and name: what the averages of a copy have to be."""

    def __init__(self, kind: str, model: nn.Module) -> None:
        self.kind, self.count, self.values = kind, 0, self.of(model)

    @staticmethod
    def of(model: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, parameter in model.named_parameters():
            layer, _, rest = name.partition(".kernels.")
            if rest:
                index, _, rest = rest.partition(".")
                name = f"{model.get_submodule(layer).seeds[int(index)].kernel_id}.{rest}"
            found[name] = parameter.detach().clone()
        return found

    def update(self, model: nn.Module) -> None:
        now = self.of(model)
        self.values = {name: self.values.get(name, value) for name, value in now.items()}
        for name, value in now.items():
            if self.kind == "swa":
                self.values[name] = self.values[name].lerp(value, 1 / (self.count + 1))
            elif self.count or self.kind in ("position", "state_dict"):
                self.values[name] = self.values[name] * DECAY + value * (1 - DECAY)
            else:  # AveragedModel copies at its first update
                self.values[name] = value.clone()
        self.count += 1


@pytest.mark.parametrize("kind", AVERAGES)
def test_the_average_covers_kernels_from_their_first_step_to_their_last(kind: str) -> None:
    made = run(network(), lr=0.05)
    averaged = AVERAGES[kind](made.model)
    follower = WeightFollower(made.model, averaged.module)
    reference = Reference(kind, made.model)

    def train(steps: int) -> None:
        for _ in range(steps):
            made.train(1)
            follower.update()
            averaged.update_parameters(made.model)
            reference.update(made.model)
            mine = Reference.of(averaged.module)
            assert mine.keys() == reference.values.keys()
            assert all(torch.allclose(mine[name], value, atol=1e-5) for name, value in reference.values.items())

    train(3)
    made.load("4")
    train(2)  # in the middle of the ramp
    made.load("0", "bottleneck")
    train(6)
    made.load("4", "low_rank")
    train(6)
    made.transport.decide("unload_kernel", layer="4")
    train(8)
    made.load("4", "parallel_expansion")  # into the seed that has become free
    train(6)
    assert [len(layer.kernels) for layer in attached_layers(averaged.module).values()] == [1, 2, 0]
    assert made.handle.stats.errors == 0
    assert [outcome.status.value for outcome in made.outcomes] == ["executed"] * 5


@pytest.mark.parametrize("late", [False, True])
def test_equal_weights_give_equal_outputs_also_during_a_ramp(late: bool) -> None:
    """A copy whose average is the present value computes the same as the model, at every step of every ramp."""
    made = run(network(), lr=0.05, ramp_steps=6)
    averaged = copy.deepcopy(made.model)
    follower = None if late else WeightFollower(made.model, averaged)
    inputs = data(seed=5)[0]
    for count in range(24):
        if count in (2, 4):
            made.load("4", "parallel_expansion" if count == 2 else "low_rank")
        if count == 14:
            made.transport.decide("unload_kernel", layer="4")
        made.train(1)
        if late and count < 8:
            continue  # growth that has begun before anything follows is taken over too
        follower = follower or WeightFollower(made.model, averaged)
        follower.update()
        with torch.no_grad():
            for mine, theirs in zip(averaged.parameters(), made.model.parameters(), strict=True):
                mine.copy_(theirs)
            for mine, theirs in zip(averaged.buffers(), made.model.buffers(), strict=True):
                mine.copy_(theirs)
            made.model.eval()
            averaged.eval()
            assert torch.equal(averaged(inputs), made.model(inputs)), count
            made.model.train()
    seeds = [[(s.kernel_id, s.state, s.alpha) for s in layers["4"].seeds] for layers in _both(made, averaged)]
    assert seeds[0] == seeds[1]
    assert sum(bool(kernel_id) for kernel_id, *_ in seeds[0]) == 1


def _both(made: Run, averaged: nn.Module) -> list[dict[str, KasminaLayer]]:
    return [attached_layers(made.model), attached_layers(averaged)]


def test_averages_by_name_gain_and_lose_the_kernels_names() -> None:
    made = run(network(), lr=0.05)
    averages = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    averages["step"] = torch.zeros(())  # an entry of the user's own stays
    follower = WeightFollower(made.model, averages)
    before = set(averages)

    def train(steps: int) -> None:
        for _ in range(steps):
            made.train(1)
            follower.update()
            for name, parameter in made.model.named_parameters():
                averages[name].lerp_(parameter.detach(), 1 - DECAY)

    train(2)
    made.load("4")
    train(8)
    assert set(averages) == {"step", *dict(made.model.named_parameters())} > before
    made.transport.decide("unload_kernel", layer="4")
    made.train(8)  # and another kernel takes its seed, and its names, before anything is updated
    made.load("4", "bottleneck")
    train(8)
    assert set(averages) == {"step", *dict(made.model.named_parameters())}
    made.transport.decide("unload_kernel", layer="4")
    train(8)
    assert set(averages) == before
    assert made.handle.stats.errors == 0


def test_a_repaired_kernel_does_not_leave_its_average_broken() -> None:
    made = run(network(), lr=0.05)
    averaged = ByPosition(made.model)
    follower = WeightFollower(made.model, averaged.module)
    made.load("4")
    for count in range(14):
        if count == 6:  # the loop's own step breaks it; the recovery replaces its values at the next
            with torch.no_grad():
                next(made.layer("4").kernels.parameters()).fill_(torch.nan)
            averaged.update_parameters(made.model)
        made.train(1)
        follower.update()
        averaged.update_parameters(made.model)
    assert made.layer("4").seeds[0].total_errors > 0
    assert all(bool(p.isfinite().all()) for p in averaged.module.parameters())


def test_an_average_of_something_else_is_refused() -> None:
    bare = network()
    averaged = AveragedModel(bare)
    made = run(bare)
    with pytest.raises(ConfigurationError, match="no copy of the attached one: make it of the model after"):
        WeightFollower(made.model, averaged)
    with pytest.raises(ConfigurationError, match="not attached"):
        WeightFollower(network(), network())


def test_the_average_keeps_its_own_mode_device_and_gradients() -> None:
    made = run(network())
    averaged = copy.deepcopy(made.model).double().eval().requires_grad_(False)
    follower = WeightFollower(made.model, averaged)
    made.load("4")
    made.train(2)
    follower.update()
    kernels = attached_layers(averaged)["4"].kernels
    assert len(kernels) == 1
    assert all(p.dtype is torch.float64 and not p.requires_grad for p in kernels.parameters())
    assert all(p.requires_grad for p in made.layer("4").kernels.parameters())
    averaged(data()[0].double())
