"""The kinds of layers: recognised by class, read and changed alike whatever they return."""

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host.blueprints._layer_kinds import (
    growable,
    has_lazy_parameters,
    layer_input,
    layer_output,
    layer_type,
    run_layer,
    with_output,
)
from tests.support.layers import ATTENTIONS, Conv1D


class LowRankLinear(nn.Linear):
    """As LoRA: a Linear with two more in it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.down = nn.Linear(4, 1, bias=False)
        self.up = nn.Linear(1, 4, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input) + self.up(self.down(input))
        return output


class NotAConv1D(nn.Module):
    """Another class of that name, of other geometry."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 3
        self.weight = nn.Parameter(torch.zeros(3))


NotAConv1D.__name__ = "Conv1D"


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Linear(2, 3), "linear"),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 3), "linear"),
        (LowRankLinear(), "linear"),
        (Conv1D(3, 2), "linear"),
        (nn.Conv3d(1, 1, 1), "conv3d"),
        (nn.ConvTranspose2d(1, 1, 1), "conv_transpose2d"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (nn.BatchNorm1d(3), "channel_norm"),
        (nn.Embedding(3, 2), "embedding"),
        (NotAConv1D(), None),
        (nn.Identity(), None),
        (nn.LSTM(2, 2), None),
        (nn.EmbeddingBag(3, 2), None),
        (nn.Bilinear(2, 2, 2), None),
    ],
    ids=str,
)
def test_a_module_is_recognised_by_its_classes(module: nn.Module, kind: str | None) -> None:
    assert layer_type(module) == kind


@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyConv2d(2, 1), nn.LazyConvTranspose1d(2, 1)])
def test_a_lazy_layer_is_an_ordinary_one_after_its_first_batch(lazy: nn.Module) -> None:
    assert has_lazy_parameters(nn.Sequential(lazy))
    lazy(torch.zeros(1, 4, 5, 5) if isinstance(lazy, nn.LazyConv2d) else torch.zeros(1, 4, 5))
    assert not has_lazy_parameters(lazy)
    assert layer_type(lazy) in ("linear", "conv2d", "conv_transpose1d")


def test_a_layer_within_another_is_a_part_of_it() -> None:
    model = nn.ModuleDict(
        {
            "lora": LowRankLinear(),
            "attention": nn.MultiheadAttention(4, 2),
            "norm": nn.LayerNorm(4),
            "plain": nn.Linear(4, 4),
        }
    )
    layers = {name: module for name, module in model.named_modules() if layer_type(module)}
    assert {"lora.down", "attention.out_proj", "norm"} <= set(layers)
    assert growable(layers) == {"lora", "attention", "plain"}


def test_the_input_is_the_first_argument_and_of_attention_the_query() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    linear, attention = nn.Linear(1, 1), nn.MultiheadAttention(4, 2)
    assert layer_input(linear, (one, two), {}) is one
    assert layer_input(linear, (), {"input": one}) is one
    assert layer_input(linear, (), {"x": one}) is one
    assert layer_input(linear, (), {}) is None
    assert layer_input(attention, (), {"key": two, "value": two, "query": one}) is one


def test_the_output_is_exchanged_within_what_the_layer_returns() -> None:
    old, new, weights = torch.zeros(2), torch.ones(2), torch.zeros(3)
    assert layer_output(old) is layer_output((old, weights)) is old
    assert with_output(old, new) is new
    assert with_output((old, weights), new) == (new, weights)
    assert layer_output(()) == ()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_runs_by_itself_in_its_own_layout(name: str) -> None:
    attention, _ = ATTENTIONS[name]
    query = torch.randn(3, 5, 8)
    found = run_layer(attention, query)
    assert found.shape == (3, 5, 8)
    torch.testing.assert_close(run_layer(attention, query[1:2]), found[1:2])
