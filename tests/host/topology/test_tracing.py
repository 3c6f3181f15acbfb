"""Execution order, and data-flow edges."""

import copy
import random
import threading
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host._common.tracing_thread import TRACING
from tamiyo.host._topology.tracing import MAX_EDGES, MAX_SKIPS, Edge, edges, execute
from tamiyo.schemas.errors import ConfigurationError
from tests.host.work import python_calls


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


class Wired(nn.Module):
    """A Linear for each entry of `inputs`, which reads the sum of the outputs that the entry lists."""

    def __init__(self, inputs: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.inputs = inputs
        self.nodes = nn.ModuleList([nn.Linear(2, 2) for _ in inputs])

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        for node, inputs in zip(self.nodes, self.inputs, strict=True):
            outputs.append(node(x + sum(outputs[i] for i in inputs) if inputs else x))
        return outputs[-1]


def by_definition(inputs: Sequence[Sequence[int]]) -> set[Edge]:
    """Every connection, `skip` if its source also reaches the target through another; the newest skips only."""
    before: list[set[int]] = []
    for direct in inputs:
        before.append(set(direct).union(*(before[i] for i in direct)))
    found = set()
    for target, direct in enumerate(inputs):
        skips = {i for i in direct if any(i in before[other] for other in direct)}
        kept = (set(direct) - skips) | set(sorted(skips)[-MAX_SKIPS:])
        found |= {Edge(f"nodes.{i}", f"nodes.{target}", "skip" if i in skips else "data") for i in kept}
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.1, 0.3, 1.0])
def test_edges_are_those_of_the_definition(seed: int, share: float) -> None:
    rng = random.Random(seed)
    inputs = [[i for i in range(node) if rng.random() < share] for node in range(16)]
    model = Wired(inputs)
    found = edges(model, layers_of(model), list(layers_of(model)))
    assert len(found) == len(set(found))
    assert set(found) == by_definition(inputs)


class Stream(nn.Module):
    """A residual stream: each block reads the sum of all before it."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2) for _ in range(3)]) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            gate, up, down = block.children()
            x = x + down(gate(x) * up(x))
        return x


def test_a_residual_stream_has_edges_linear_in_its_depth() -> None:
    shallow, deep = Stream(30), Stream(300)
    counts = [len(edges(each, layers_of(each), list(layers_of(each)))) for each in (shallow, deep)]
    # each block: gate and up read the block before and 8 skips, down reads gate and up
    assert counts[1] - counts[0] == 270 * (2 * (1 + MAX_SKIPS) + 2)
    found = edges(deep, layers_of(deep), list(layers_of(deep)))
    into = [edge for edge in found if edge.target == "blocks.200.0"]
    assert into == [Edge(f"blocks.{block}.2", "blocks.200.0", "skip") for block in range(191, 199)] + [
        Edge("blocks.199.2", "blocks.200.0", "data")
    ]


def test_the_work_is_linear_in_the_depth() -> None:
    def calls(blocks: int) -> int:
        model = Stream(blocks)
        return python_calls(lambda: edges(model, layers_of(model), list(layers_of(model))))

    assert calls(240) < 4.5 * calls(60)


def test_a_stage_of_a_resnet_keeps_every_edge() -> None:
    """Six blocks with an identity past each, as in the longest stage of a ResNet-50."""
    model = Wired([list(range(node)) for node in range(8)])  # the stem, six blocks, the head
    assert len(edges(model, layers_of(model), list(layers_of(model)))) == 8 * 7 // 2


def test_layers_that_fan_into_each_other_are_thinned_evenly() -> None:
    width, depth = 24, 6
    inputs = [
        [] if node < width else list(range(node - node % width - width, node - node % width))
        for node in range(width * depth)
    ]
    model = Wired(inputs)
    found = edges(model, layers_of(model), list(layers_of(model)))
    assert len(found) == MAX_EDGES * width * depth
    outgoing, incoming = Counter(e.source for e in found), Counter(e.target for e in found)
    assert min(outgoing.values()) >= 2
    assert min(incoming.values()) >= 2
    assert len(outgoing) == len(incoming) == width * (depth - 1)
    assert {edge.kind for edge in found} == {"data"}


class Recurrent(nn.Module):
    """Cells called again and again: a layer flows into itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(2, 2)
        self.onward = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(2)
        for _ in range(5):
            hidden = torch.tanh(self.inward(x) + self.onward(hidden))
        return hidden


def test_a_layer_that_is_called_again_flows_into_itself_once() -> None:
    model = Recurrent()
    assert edges(model, layers_of(model), ["inward", "onward"]) == [
        Edge("inward", "onward", "data"),
        Edge("onward", "onward", "data"),
    ]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        output: Tensor = self.last(hidden + self.attention(hidden, hidden, hidden)[0])
        return output


def test_data_flows_through_the_tuple_that_attention_returns() -> None:
    model = Attending()
    layers = {name: model.get_submodule(name) for name in ("first", "attention", "last")}
    assert set(edges(model, layers, list(layers))) == {
        Edge("first", "attention", "data"),
        Edge("attention", "last", "data"),
        Edge("first", "last", "skip"),
    }


errors: list[Exception] = []
"""Not the model's: what a trace changes in a model is taken back."""


class Meanwhile(nn.Module):
    """While it is traced, another thread trains a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def forward(self, inputs: Tensor) -> Tensor:
        def train() -> None:
            try:
                other = copy.deepcopy(self.__dict__["_modules"]["other"])
                other(torch.ones(2, 2)).sum().backward()
                assert all(isinstance(each, Tensor) for each in (other[0].weight, other[1].running_mean))
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        output: Tensor = self.layer(inputs)
        return output


def test_networks_of_other_threads_run_while_one_is_traced() -> None:
    errors.clear()
    model = Meanwhile()
    layers = {"layer": model.layer}
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    edges(model, layers, ["layer"])
    assert errors == []
    assert (nn.Module.__call__, nn.Module.__getattr__) == (call, attribute)


def test_one_trace_waits_for_another() -> None:
    with TRACING:
        thread = threading.Thread(target=edges, args=(Residual(), layers_of(Residual()), ["first"]))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(10)
    assert not thread.is_alive()
