"""The layers that `attach` wraps or refuses, and the topology that it publishes."""

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host import LayerSpec
from tamiyo.host._client.transport import Make
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host.blueprints import CATALOGUE
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import TOPOLOGY, Topic
from tests.support.runs import RUN, Run, data, network, run


def topology(attached: Run) -> ModelTopology:
    (record,) = attached.records(TOPOLOGY)
    assert isinstance(record, ModelTopology)
    return record


@pytest.fixture
def attached() -> Iterator[Run]:
    made = run(protected=["5"], parameter_budget=None, cooldown_steps=30)
    yield made
    made.handle.close()


def test_linear_and_convolution_layers_are_watched_and_the_model_stays_as_it_was() -> None:
    model, inputs = network(), data()[0]
    before, keys, modules = model(inputs), list(model.state_dict()), list(model.children())
    weights = [id(p) for p in model.parameters()]
    made = run(model)
    assert made.handle.layers == ("0", "3", "5")
    assert made.handle.left_alone == {}
    assert list(model.children()) == modules
    assert list(model.state_dict()) == keys
    assert torch.equal(model(inputs), before)
    assert [id(p) for p in model.parameters()] == weights
    made.handle.close()


def test_the_topology_is_published_once(attached: Run) -> None:
    record = topology(attached)
    assert (record.run_id, record.cooldown_steps) == (RUN, 30)
    assert [(n.layer_id, n.type, n.parameters, n.seeds, n.protected) for n in record.layers] == [
        ("0", "conv1d", 21, 4, False),
        ("3", "linear", 52, 4, False),
        ("5", "linear", 10, 4, True),
    ]
    assert record.parameters == 83
    assert record.parameter_budget == 8 * 83
    assert [(e.source, e.target, e.kind) for e in record.edges] == [("0", "3", "data"), ("3", "5", "data")]
    node = record.layers[0]
    assert (node.input_shape, node.output_shape) == ([2, 8], [3, 4])
    spec = LayerSpec.from_dict(json.loads(node.spec))
    assert (spec.kernel_size, spec.stride, spec.padding) == ((3,), (2,), (1,))
    offers = {offer.name: (offer.parameters, offer.flops) for offer in node.blueprints}
    assert offers == {
        name: (CATALOGUE[name].parameters(spec), CATALOGUE[name].flops(spec))
        for name in ("parallel_expansion", "bottleneck", "depthwise_separable", "squeeze_excite")
    }


def test_the_same_network_has_the_same_topology_id(attached: Run) -> None:
    again, other = run(protected=["5"]), run()
    assert topology(again).topology_id == topology(attached).topology_id != topology(other).topology_id
    again.handle.close()
    other.handle.close()


def test_chosen_layers_only() -> None:
    made = run(layers=["3"])
    assert [n.layer_id for n in topology(made).layers] == ["3"]
    assert made.handle.layers == ("3",)
    assert made.handle.left_alone == {}
    made.handle.close()


class Shared(nn.Module):
    """One layer under two names, one that never runs, and attention, of which its projection is a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.idle = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.again(torch.relu(self.first(inputs)))
        output: Tensor = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return output


def test_a_layer_under_two_names_is_one_layer_and_idle_layers_are_left_alone() -> None:
    model = Shared()
    example = torch.randn(2, 3, 4)
    before = model(example)
    made = run(model, example_input=example, held_out=False)
    assert [n.layer_id for n in topology(made).layers] == ["first", "attention"]
    assert model.first is model.again
    assert set(made.handle.left_alone) == {"idle"}
    assert "does not run" in made.handle.left_alone["idle"]
    assert torch.equal(model(example), before)
    made.handle.close()


def test_the_global_random_state_is_left_alone() -> None:
    model = network()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = run(model)
    assert torch.equal(torch.get_rng_state(), before)
    made.handle.close()


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)), {}, "nothing to attach to"),
        (network(), {"layers": ["fc"]}, "there is no layer fc"),
        (network(), {"protected": ["fc"]}, "there is no layer fc"),
        (network(), {"example_input": torch.ones(2, 5, 8)}, "example_input"),
        (Shared(), {"example_input": torch.ones(2, 3, 4), "layers": ["idle"]}, "does not run"),
    ],
)
def test_a_model_that_cannot_be_attached_is_an_error(model: nn.Module, more: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(model, **more)  # type: ignore[arg-type]


def test_a_model_is_attached_once() -> None:
    made = run()
    with pytest.raises(ConfigurationError, match="attached already"):
        run(made.model)
    made.handle.detach()
    run(made.model).handle.close()


def test_layers_protected_by_the_settings_are_protected_too() -> None:
    made = run(protected=["5"], protected_layers=["0", "elsewhere"])
    assert [node.protected for node in topology(made).layers] == [True, False, True]
    made.load("0")
    made.train(1)
    assert [outcome.reason.split(":")[0] for outcome in made.outcomes] == ["protected_layer"]
    made.handle.close()


class StrictTransport(MemoryTransport):
    """Accepts records of a connected run only."""

    def publish(self, topic: Topic, make: Make) -> None:
        assert self.connected
        super().publish(topic, make)


def test_the_transport_is_open_before_the_topology_is_published() -> None:
    made = run(transport=StrictTransport())
    assert topology(made).run_id == RUN
    made.handle.close()


def test_a_model_whose_run_cannot_be_opened_stays_as_it_was() -> None:
    model, first = network(), run()
    with pytest.raises(ConfigurationError, match="carries run"):
        run(model, transport=first.transport)
    assert kernels_of(model) is None
    first.handle.close()
