"""Models that reach their layers in their own ways: every kernel has its effect, or the layer is left alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tamiyo.host import attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tests.host.loops.loops import Listed, attached, stir, train
from tests.support.layers import attached_layer


class Dispatching(nn.Module):
    """Asks for the class of each layer, and reads its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)])

    def forward(self, x: Tensor) -> Tensor:
        for module in self.body:
            if isinstance(module, nn.Linear):
                assert module.in_features == x.shape[-1]
                x = module(x) * (module.weight.shape[0] ** -0.5)
            else:
                x = module(x)
        return x


class Keyword(nn.Module):
    """Passes the input by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(input=torch.relu(self.a(input=x)))


class Remembering(nn.Module):
    """Keeps an activation in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = {"hidden": [self.a(x)]}
        return self.b(torch.relu(self.last["hidden"][0]))


class Tied(nn.Module):
    """One matrix for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.relu(self.a(x))))


class Encoder(nn.Module):
    """Uses PyTorch's fused path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.unsqueeze(1).expand(-1, 3, -1)).mean(1))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.b = parametrizations.spectral_norm(nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(torch.relu(self.norm(self.a(x)))))


class Functional(nn.Module):
    """Reads one layer's weights itself, caches another's forward, and calls a third."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.cached, self.called = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.call = self.cached.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.called(self.call(torch.relu(F.linear(x, self.read.weight, self.read.bias))))


class OnlyInEval(nn.Module):
    """Takes another way in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.auxiliary, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden if self.training else self.auxiliary(hidden))


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    # factory, and the layers left alone with a part of the reason
    "listed": (Listed, {}),
    "dispatching": (Dispatching, {}),
    "keyword": (Keyword, {}),
    "remembering": (Remembering, {}),
    "tied": (Tied, {}),
    "normed": (Normed, {}),
    "functional": (Functional, {"read": "does not run", "cached": "does not run"}),
    "only_in_eval": (OnlyInEval, {"auxiliary": "training mode"}),
    "single": (lambda: nn.Linear(8, 2), {}),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2), nn.Sequential()), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_watched_layer_grows_with_an_effect_and_is_exported(name: str) -> None:
    make, left_alone = MODELS[name]
    torch.manual_seed(0)
    model, inputs = make(), torch.randn(5, 8)
    handle, transport, optimizer = attached(model)
    assert handle.left_alone.keys() == left_alone.keys()
    for layer, reason in left_alone.items():
        assert reason in handle.left_alone[layer]
    for layer_id in handle.layers:
        transport.decide("load_kernel", layer=layer_id, blueprint="parallel_expansion")
        train(model, optimizer, handle, 2)
        for training in (True, False):
            model.train(training)
            torch.manual_seed(1)
            before = model(inputs)
            kept = copy.deepcopy(model.state_dict())
            stir(model, layer_id)
            torch.manual_seed(1)
            assert not torch.allclose(model(inputs), before), (layer_id, training)
            model.load_state_dict(kept)
        model.train()
    assert handle.stats.executed == len(handle.layers)
    assert handle.stats.errors == 0
    for layer_id in handle.layers:
        stir(model, layer_id)
    model.eval()
    plain = handle.export()
    assert not any(type(module).__module__.startswith("tamiyo") for module in plain.modules())
    for grad in (torch.enable_grad(), torch.no_grad()):
        with grad:
            assert torch.allclose(plain(inputs), model(inputs), atol=1e-5)
    assert isinstance(plain.get_submodule(_first_name(model)), nn.Linear)
    handle.close()


def _first_name(model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))


def test_the_fused_path_of_an_encoder_gives_way_to_its_kernels() -> None:
    torch.manual_seed(0)
    model, inputs = Encoder(), torch.randn(5, 8)
    model.eval()
    with torch.no_grad():
        fused = model(inputs)
    model.train()
    handle, transport, optimizer = attached(model)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(inputs), fused)  # watching keeps the fused path
    model.train()
    assert {"encoder.layers.0.linear1", "encoder.layers.1.linear2", "head"} <= set(handle.layers)
    for layer_id in ("encoder.layers.0.linear1", "encoder.layers.1.linear2"):
        transport.decide("load_kernel", layer=layer_id, blueprint="parallel_expansion")
        train(model, optimizer, handle, 2)
        stir(model, layer_id)
    model.eval()
    slow = model(inputs)
    with torch.no_grad():
        assert torch.allclose(model(inputs), slow, atol=1e-5)
        assert torch.allclose(handle.export().eval()(inputs), slow, atol=1e-5)
    handle.close()


def test_until_something_grows_a_model_has_the_state_of_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = Normed()
    model = copy.deepcopy(plain)
    handle, transport, optimizer = attached(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    transport.decide("load_kernel", layer="a", blueprint="parallel_expansion")
    train(model, optimizer, handle, 2)
    names = [n for n, _ in model.named_parameters()]
    base = [n for n, _ in plain.named_parameters()]
    assert names[: len(base)] == base  # kernels come last
    assert len(names) > len(base)
    assert list(model.state_dict())[: len(plain.state_dict())] == list(plain.state_dict())
    handle.close()


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_a_grown_state_builds_its_kernels_and_a_plain_one_drops_them(prefix: str) -> None:
    class Holder(nn.Module):
        """What a framework puts around a model, by the names in `prefix`."""

    def held(model: nn.Module) -> nn.Module:
        for name in reversed(prefix.split(".")[:-1]):
            holder = Holder()
            holder.add_module(name, model)
            model = holder
        return model

    torch.manual_seed(0)
    first, second = Listed(), Listed()
    handle, transport, optimizer = attached(first)
    plain_state = {k: v.clone() for k, v in held(first).state_dict().items()}
    transport.decide("load_kernel", layer="a", blueprint="parallel_expansion")
    train(first, optimizer, handle, 3)
    stir(first, "a")
    grown_state = copy.deepcopy(held(first).state_dict())
    assert all(key.startswith(prefix) for key in grown_state)
    other, _, other_optimizer = attached(second)
    inputs = torch.randn(5, 8)
    held(second).load_state_dict(grown_state)
    assert torch.equal(second(inputs), first(inputs))
    train(second, other_optimizer, other, 1)
    assert other.stats.kernel_parameters == handle.stats.kernel_parameters > 0
    trained = {id(p) for group in other_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in second.parameters()}
    held(second).load_state_dict(plain_state)
    train(second, other_optimizer, other, 1)
    assert other.stats.kernel_parameters == 0
    trained = {id(p) for group in other_optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in second.parameters()}
    handle.close()
    other.close()


@pytest.mark.parametrize("layer_id", ["a", "b"])
def test_the_numbers_of_a_layer_are_its_own_wherever_the_kernels_are_registered(layer_id: str) -> None:
    torch.manual_seed(0)
    model = Listed()  # its last module is the layer b
    handle, transport, optimizer = attached(model)
    before = handle.stats.parameters
    transport.decide("load_kernel", layer=layer_id, blueprint="parallel_expansion")
    train(model, optimizer, handle, 12)
    norms = [
        float(torch.stack([p.grad.norm() for p in (layer.weight, layer.bias) if p.grad is not None]).norm())
        for layer in (model.a, model.b)
    ]
    frame = transport.records("telemetry.layer.health_signals")[-1]
    assert frame.layer_id == ["a", "b"]
    assert frame.gradient_norm == pytest.approx(norms, rel=1e-5)
    assert frame.parameters == [72, 18]
    outcome = transport.records("tamiyo.adaptation.outcomes")[-1]
    assert outcome.before["parameters"] == before == 90
    assert outcome.after["parameters"] == handle.stats.parameters == before + handle.stats.kernel_parameters
    transport.decide("optimize_parameters", layer="b")
    train(model, optimizer, handle, 1)
    slowed = {id(p) for p in optimizer.param_groups[0]["params"] if handle._adapter._growing.learning_rate(p) < 0.05}
    own = attached_layer(model, "b")
    assert slowed == {id(p) for p in (model.b.weight, model.b.bias, *own.kernels.parameters())}
    handle.close()


def test_a_copy_of_a_grown_model_is_independent_of_it() -> None:
    torch.manual_seed(0)
    model, inputs = Listed(), torch.randn(5, 8)
    handle, transport, optimizer = attached(model)
    transport.decide("load_kernel", layer="a", blueprint="parallel_expansion")
    train(model, optimizer, handle, 3)
    stir(model, "a")
    expected = model(inputs)
    average = copy.deepcopy(model)
    train(model, optimizer, handle, 3)
    stir(model, "a")
    assert torch.equal(average(inputs), expected)
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in average.parameters()}
    transport.decide("unload_kernel", layer="a")
    train(model, optimizer, handle, 4)
    assert torch.equal(average(inputs), expected)
    handle.close()


def test_the_users_hooks_see_what_the_network_sees() -> None:
    torch.manual_seed(0)
    model, seen = Listed(), []
    model.a.register_forward_hook(lambda module, args, output: seen.append(output))
    handle, transport, optimizer = attached(model)
    transport.decide("load_kernel", layer="a", blueprint="parallel_expansion")
    train(model, optimizer, handle, 2)
    stir(model, "a")
    inputs = torch.randn(5, 8)
    seen.clear()
    output = model(inputs)
    assert torch.equal(model.b(torch.relu(seen[0])), output)
    handle.close()


class Locked:
    def __deepcopy__(self, memo: object) -> object:
        raise TypeError("a lock cannot be copied")


def test_an_attribute_that_cannot_be_copied_is_named_and_attach_works_without_the_copy() -> None:
    torch.manual_seed(0)
    model = Listed()
    model.guard = Locked()  # type: ignore[assignment]
    handle, _, optimizer = attached(model)
    assert handle.layers == ("a", "b")
    train(model, optimizer, handle, 3)
    with pytest.raises(KernelError, match="'guard'"):
        handle.export()
    handle.close()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.jit.script(nn.Sequential(nn.Linear(8, 2))), "ScriptModule"),
        (lambda x: x, "torch.nn.Module"),
        (None, "torch.nn.Module"),
        ("model", "torch.nn.Module"),
    ],
)
def test_what_is_no_python_module_is_refused(model: Any, message: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ConfigurationError, match=message):
        attach(model, optimizer, example_input=torch.randn(4, 8), transport=MemoryTransport())
