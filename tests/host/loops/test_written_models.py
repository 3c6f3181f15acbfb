"""Models as people write them: what they return, share, freeze, compute from other weights, and change in place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tamiyo.host import attach
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host.testing import MemoryTransport
from tests.host.loops.loops import attached, train
from tests.host.loops.written import Loop, batch, check, mlp


class Two(nn.Module):
    """Two layers, of which others override the way between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.relu(self.a(x)))


class Checkpointed(Two):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3))
        self.b = nn.Linear(8, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Any:
        return self.b(checkpoint(self.middle, self.a(x), use_reentrant=self.reentrant))


class Segments(nn.Sequential):
    def forward(self, x: Tensor) -> Any:
        return checkpoint_sequential(list(self), 2, x.requires_grad_(), use_reentrant=True)


class TiedAutoencoder(Two):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.linear(torch.tanh(self.a(x)), self.a.weight.t()))


class Normed(Two):
    """Weights that are computed when they are read, and change then in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.orthogonal(self.a)
        self.b = parametrizations.spectral_norm(self.b)


class FormerlyNormed(Two):
    """The same by hooks, as older code does."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.weight_norm(self.a)
        self.b = nn.utils.spectral_norm(self.b)


class Cached(Normed):
    def forward(self, x: Tensor) -> Any:
        with parametrize.cached():  # type: ignore[no-untyped-call]
            return super().forward(x)


class LowRank(nn.Module):
    """A frozen layer with trained low-rank matrices, as a user's own LoRA."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.base(x) + self.up(self.down(x))


class LowRankLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs) * 0.1), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.t() @ self.up.t()


class Named(Two):
    """One layer under several names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.alias, self.parts = self.a, nn.ModuleList([self.a, self.b])

    def forward(self, x: Tensor) -> Any:
        return self.parts[1](torch.relu(self.alias(torch.relu(self.parts[0](x)))))


class ChangedOutput(Two):
    def forward(self, x: Tensor) -> Any:
        hidden = self.a(x)
        hidden += x
        hidden.mul_(2)
        hidden[:, 0] = 0
        return self.b(hidden.relu_()).div_(3)


class ChangedInput(Two):
    """A layer with a frozen weight, whose input torch no longer needs, so that it may change in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.b = nn.Linear(8, 8), nn.Linear(8, 2)
        self.a.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x) * 1
        hidden = self.a(x)
        return self.b(torch.relu(hidden) + x.mul_(2))


class Children(nn.Module):
    """Runs whatever children it has."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for number, part in enumerate(parts):
            self.add_module(str(number), part)

    def forward(self, x: Tensor) -> Any:
        for part in self.children():
            x = part(x)
        return x


class LinearWithChildren(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        for part in self.children():
            output = output + part(output)
        return output


class Anything(Two):
    """Has every attribute."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return None


class OwnState(Two):
    """Returns its state in a form of its own."""

    def state_dict(self, *args: Any, **more: Any) -> Any:
        return {"wrapped": super().state_dict(*args, **more)}

    def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state["wrapped"], strict, assign)


class LowPrecision(Two):
    """Layers of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8).bfloat16()

    def forward(self, x: Tensor) -> Any:
        return self.b(self.a(x.bfloat16()).float())


def pruned() -> nn.Module:
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def hooked() -> nn.Module:
    """With hooks of every kind that return values."""
    model = mlp()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    model[0].register_full_backward_hook(lambda module, inner, outer: (inner[0] * 2,) if inner[0] is not None else None)
    model[2].register_full_backward_pre_hook(lambda module, outer: (outer[0] * 0.5,))
    model[2].register_forward_hook(lambda module, args, output: None, always_call=True)
    model[0].weight.register_hook(lambda gradient: gradient * 3)
    return model


def in_place_activations() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.SiLU(inplace=True), nn.Linear(8, 2)
    )


def low_rank() -> nn.Module:
    return nn.Sequential(LowRank(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))


MODELS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "checkpointed_reentrant": (lambda: Checkpointed(True), "middle.0"),
    "checkpointed": (lambda: Checkpointed(False), "middle.0"),
    "before_a_checkpoint": (lambda: Checkpointed(True), "a"),
    "segments": (lambda: Segments(*mlp()), "2"),
    "tied": (TiedAutoencoder, None),
    "orthogonal": (Normed, "a"),
    "spectral_norm": (Normed, "b"),
    "cached_parametrizations": (Cached, "b"),
    "former_spectral_norm": (FormerlyNormed, "b"),
    "former_weight_norm": (FormerlyNormed, "a"),
    "pruned": (pruned, None),
    "low_rank": (low_rank, "0.down"),
    "low_rank_linear": (lambda: nn.Sequential(LowRankLinear(8, 8), nn.ReLU(), LowRankLinear(8, 2)), None),
    "several_names": (Named, None),
    "in_place_activations": (in_place_activations, None),
    "changed_output": (ChangedOutput, None),
    "changed_input": (ChangedInput, "a"),
    "hooked": (hooked, "0"),
    "hooked_elsewhere": (hooked, "2"),
    "children": (lambda: Children(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), None),
    "no_children_at_the_end": (lambda: Children(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), Children()), None),
    "children_of_the_last": (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), LinearWithChildren(8, 2)), None),
    "anything": (Anything, None),
    "own_state": (OwnState, None),
    "low_precision": (LowPrecision, "a"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:None of the inputs:UserWarning")
def test_a_model_of_any_kind_computes_and_learns_as_before(name: str, caplog: pytest.LogCaptureFixture) -> None:
    make, layer = MODELS[name]

    class Own(Loop):
        def make(self) -> nn.Module:
            self.layer = layer
            self.tolerance = 0.05 if name == "low_precision" else 1e-5
            return make()

    check(Own, caplog)


@dataclass
class Batch:
    values: Tensor
    more: object = None


class Structured(Two):
    """Takes a dataclass in a dict, and returns one."""

    def forward(self, given: dict[str, list[Batch]], *, scale: float = 1.0) -> Any:
        hidden = torch.relu(self.a(given["batches"][0].values))
        return Batch(self.b(hidden) * scale, (hidden, None))


def test_inputs_and_outputs_of_any_structure(caplog: pytest.LogCaptureFixture) -> None:
    class Own(Loop):
        example = ({"batches": [Batch(torch.zeros(2, 8))]},)

        def make(self) -> nn.Module:
            return Structured()

        def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.model({"batches": [Batch(inputs)]}, scale=2.0).values, labels)

    check(Own, caplog)


def test_images_in_channels_last(caplog: pytest.LogCaptureFixture) -> None:
    class Images(Loop):
        example = torch.zeros(2, 3, 6, 6)

        def make(self) -> nn.Module:
            model = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
            )  # fmt: skip
            return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

        def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
            images = inputs[:, :1, None, None] + inputs[:, None, :6, None] * torch.ones(1, 3, 1, 6)
            return super().loss(images.to(memory_format=torch.channels_last), labels)

    check(Images, caplog)


@pytest.mark.parametrize("make", [Normed, FormerlyNormed])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_attaching_computes_no_weight_in_training_mode(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(
        model, torch.optim.Adam(model.parameters()), example_input=torch.zeros(2, 8), transport=MemoryTransport()
    ).detach()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Adding(Children):
    """Adds up what its children return: one more would show."""

    def forward(self, x: Tensor) -> Any:
        total: Any = sum(part(x) for part in self.children())
        return total


def test_kernels_are_registered_where_nothing_runs_them() -> None:
    model = Adding(nn.Linear(8, 2), LinearWithChildren(8, 2))
    inputs = batch(0)[0]
    expected = model(inputs)
    handle, transport, optimizer = attached(model)
    assert torch.equal(model(inputs), expected)
    assert [name for name, module in model.named_modules() if module is kernels_of(model)] == ["0.tamiyo_kernels"]
    transport.decide("load_kernel", layer="1", blueprint="low_rank")
    train(model, optimizer, handle, 4)
    saved = model.state_dict()
    assert any("tamiyo_kernels" in name for name in saved)
    model.load_state_dict(saved)
    handle.close()


def test_a_state_of_an_own_form_is_saved_and_resumed() -> None:
    torch.manual_seed(0)
    first, second = OwnState(), OwnState()
    handle, transport, optimizer = attached(first)
    transport.decide("load_kernel", layer="a", blueprint="low_rank")
    train(first, optimizer, handle, 4)
    again, _, _ = attached(second)
    again.load_state_dict(handle.state_dict())
    inputs = batch(0)[0]
    assert torch.equal(second(inputs), first(inputs))


def test_kernels_stay_the_models_when_its_last_layer_is_replaced() -> None:
    torch.manual_seed(0)
    model = mlp()
    handle, transport, optimizer = attached(model)
    transport.decide("load_kernel", layer="0", blueprint="low_rank")
    train(model, optimizer, handle, 4)
    kernels = [p for name, p in model.named_parameters() if "tamiyo" in name]
    model[4] = nn.Linear(8, 2)
    optimizer.add_param_group({"params": model[4].parameters()})
    train(model, optimizer, handle, 3)  # a sampled step among them
    assert len(kernels) == 2
    assert [id(p) for name, p in model.named_parameters() if "tamiyo" in name] == [id(p) for p in kernels]
    model.load_state_dict(model.state_dict())
    transport.decide("load_kernel", layer="4", blueprint="low_rank")
    train(model, optimizer, handle, 1)
    refused = transport.records("tamiyo.adaptation.outcomes")[-1]
    assert (refused.status, refused.reason) == (
        "refused",
        "model_changed: the model no longer has the module of layer 4",
    )
    transport.decide("unload_kernel", layer="0")
    train(model, optimizer, handle, 3)
    assert handle.stats.kernel_parameters == handle.stats.errors == 0
