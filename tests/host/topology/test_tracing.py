"""Execution order, and data-flow edges."""

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host.topology.tracing import Edge, edges, execute
from tamiyo.schemas.errors import ConfigurationError


class Residual(nn.Module):
    """first -> middle -> last, and round the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)  # registered first: order must not follow registration
        self.first = nn.Linear(4, 3)
        self.middle = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        output: Tensor = self.last(hidden + self.dropout(self.middle(hidden)))
        return output


class Branching(Residual):
    """Its path depends on the data: torch.fx cannot follow."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if hidden.sum() > 1e9:
            hidden = -hidden
        output: Tensor = self.last(self.middle(hidden))
        return output


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}


def test_order_is_that_of_execution_with_each_layers_input() -> None:
    model = Residual()
    run = execute(model, layers_of(model), torch.ones(5, 4))
    assert run.order == ("first", "middle", "last")
    assert [tuple(run.inputs[name].shape) for name in run.order] == [(5, 4), (5, 3), (5, 3)]


def test_execution_leaves_modes_random_state_and_hooks_as_they_were() -> None:
    model = Residual()
    model.dropout.eval()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    execute(model, layers_of(model), torch.ones(5, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.first.training, model.dropout.training) == (True, True, False)
    assert not model.first._forward_pre_hooks
    assert all(p.grad is None for p in model.parameters())


def test_an_edge_past_other_layers_is_a_skip() -> None:
    model = Residual()
    found = edges(model, layers_of(model), ["first", "middle", "last"])
    assert set(found) == {
        Edge("first", "middle", "data"),
        Edge("middle", "last", "data"),
        Edge("first", "last", "skip"),
    }


def test_a_model_that_cannot_be_traced_is_linked_in_order_of_execution() -> None:
    model = Branching()
    assert edges(model, layers_of(model), ["first", "middle", "last"]) == [
        Edge("first", "middle", "order"),
        Edge("middle", "last", "order"),
    ]


def test_edges_pass_through_layers_that_were_not_chosen() -> None:
    model = Residual()
    chosen = {name: module for name, module in layers_of(model).items() if name != "middle"}
    assert edges(model, chosen, ["first", "last"]) == [Edge("first", "last", "data")]


@pytest.mark.parametrize("example", [torch.ones(5, 4), (torch.ones(5, 4),), {"inputs": torch.ones(5, 4)}])
def test_an_example_is_a_tensor_arguments_or_keywords(example: Tensor | tuple[Tensor] | dict[str, Tensor]) -> None:
    model = Residual()
    assert execute(model, layers_of(model), example).order == ("first", "middle", "last")


def test_an_example_that_does_not_fit_is_a_configuration_error() -> None:
    model = Residual()
    with pytest.raises(ConfigurationError, match="example_input"):
        execute(model, layers_of(model), torch.ones(5, 7))
    assert model.training
