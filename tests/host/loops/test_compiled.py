"""torch.compile and other transforms: no graph break, compiled anew only for another network, kernels effective."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tamiyo.host import HostSettings, attach, export
from tamiyo.host.testing import MemoryTransport
from tests.support.layers import attached_layer

BACKEND = "eager"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def settings(**more: Any) -> HostSettings:
    values: dict[str, Any] = {
        "sample_interval": 5,
        "cooldown_steps": 0,
        "ramp_steps": 6,
        "overhead_budget": 1e6,
        "parameter_budget": 10_000,
        "drain_s": 0.0,
    }
    return HostSettings(**values | more)


class Counting:
    """A compiler backend that counts what it compiles."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return module.forward


class Loop:
    def __init__(self, *, backend: Any = BACKEND, attached: bool = True, **more: Any) -> None:
        self.model = network()
        self.compiled = torch.compile(self.model, backend=backend, fullgraph=True, dynamic=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.transport = MemoryTransport()
        self.losses: list[float] = []
        self.done = 0
        self.handle = (
            attach(
                self.compiled, self.optimizer, example_input=torch.zeros(2, 6), settings=settings(**more),
                transport=self.transport,
            )
            if attached
            else None
        )  # fmt: skip

    def train(self, steps: int) -> "Loop":
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.done)
            inputs = torch.randn(16, 6, generator=generator)
            loss = F.cross_entropy(self.compiled(inputs), (inputs[:, 0] > 0).long())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            self.done += 1
            if self.handle is not None:
                self.handle.step(loss=loss)
        return self


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_an_attached_model_compiles_as_a_whole_and_is_measured() -> None:
    backend = Counting()
    loop = Loop(backend=backend).train(30)
    assert backend.graphs == 1
    assert loop.handle is not None
    assert loop.handle.stats.errors == 0
    frames = loop.transport.records("telemetry.layer.health_signals")
    assert [frame.step for frame in frames] == [5, 10, 15, 20, 25, 30]
    performance = loop.transport.records("telemetry.execution.kernel_performance")
    assert all(frame.layer_id == ["0", "2"] for frame in performance)
    assert loop.losses == Loop(attached=False).train(30).losses


def test_it_is_compiled_anew_only_when_the_network_changes() -> None:
    backend = Counting()
    loop = Loop(backend=backend).train(7)
    loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(1)
    compiled = backend.graphs
    loop.train(30)  # the whole ramp, and frames
    assert (compiled, backend.graphs) == (1, 2)
    loop.transport.decide("unload_kernel", layer="0")
    loop.train(30)
    # Once when the kernel begins to leave at most, and once when it has left.
    assert backend.graphs <= 4
    assert loop.handle is not None
    assert loop.handle.stats.kernel_parameters == 0
    assert loop.handle.stats.errors == 0


def test_a_compiled_model_computes_its_kernels() -> None:
    loop = Loop().train(7)
    loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(20)
    loop.transport.decide("load_kernel", layer="0", blueprint="bottleneck")
    loop.train(10)
    inputs = torch.randn(5, 6)
    plain = loop.model(inputs)
    layer = attached_layer(loop.model, "0")
    assert len(layer.kernels) == 2
    with torch.no_grad():
        for kernel in layer.kernels.values():
            for parameter in kernel.last.parameters():  # type: ignore[union-attr, operator]
                parameter.normal_()
    assert not torch.allclose(loop.model(inputs), plain)
    assert torch.allclose(loop.compiled(inputs), loop.model(inputs), atol=1e-6)


def test_a_kernel_that_fails_in_compiled_code_is_bypassed_and_found_at_the_next_frame() -> None:
    loop = Loop(ramp_steps=0).train(6)
    loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(1)
    layer = attached_layer(loop.model, "0")
    layer.defer_errors()
    (kernel,) = layer.kernels.values()
    with torch.no_grad():
        kernel.last.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    inputs = torch.randn(5, 6)
    assert bool(loop.compiled(inputs).isfinite().all())
    loop.train(4)
    assert all(map(torch.tensor(loop.losses).isfinite().__getitem__, range(len(loop.losses))))
    assert layer.seeds[0].total_errors >= 1


def test_a_kernel_that_fails_on_a_device_spoils_no_gradient() -> None:
    model = network()
    transport = MemoryTransport()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(
        model, optimizer, example_input=torch.zeros(2, 6), settings=settings(ramp_steps=0), transport=transport
    )
    layer = attached_layer(model, "2")
    layer.defer_errors()  # as on a GPU
    transport.decide("load_kernel", layer="2", blueprint="bottleneck")
    handle.step(loss=0.5)
    inputs = torch.randn(5, 6)
    model(inputs).sum().backward()
    expected = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
    model.zero_grad()
    (kernel,) = layer.kernels.values()
    original = kernel.hidden
    kernel.hidden = lambda a, b: original(a, b) / 0  # type: ignore[method-assign, operator, assignment, union-attr]
    output = model(inputs)
    assert bool(output.isfinite().all())
    output.sum().backward()
    found = [p.grad for p in model[0].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True) if b is not None)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    handle.close()


def grown() -> tuple[nn.Sequential, MemoryTransport]:
    model = network()
    transport = MemoryTransport()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(
        model, optimizer, example_input=torch.zeros(2, 6), settings=settings(ramp_steps=0), transport=transport
    )
    transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    handle.step(loss=0.5)
    (kernel,) = attached_layer(model, "0").kernels.values()
    with torch.no_grad():
        for parameter in kernel.last.parameters():  # type: ignore[union-attr, operator]
            parameter.normal_()
    handle.close()
    return model, transport


def test_functional_transforms_see_the_kernels() -> None:
    model, _ = grown()
    inputs = torch.randn(5, 6)
    parameters = dict(model.named_parameters())
    expected = model(inputs)
    assert torch.allclose(torch.func.functional_call(model, parameters, (inputs,)), expected)
    zeroed = {name: torch.zeros_like(p) for name, p in parameters.items()}
    assert torch.equal(torch.func.functional_call(model, zeroed, (inputs,)), torch.zeros(5, 2))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: torch.func.functional_call(model, parameters, (x,))))(inputs)
    assert jacobian.shape == (5, 2, 6)
    row = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], inputs[0])
    assert torch.allclose(jacobian[0], row, atol=1e-5)


def test_a_traced_model_keeps_its_kernels() -> None:
    model, _ = grown()
    inputs = torch.randn(5, 6)
    traced = torch.fx.symbolic_trace(model)
    assert torch.allclose(traced(inputs), model(inputs))


def test_a_grown_model_and_its_export_pass_torch_export() -> None:
    model, _ = grown()
    inputs = torch.randn(5, 6)
    for each in (model, export(model)):
        program = torch.export.export(each.eval(), (inputs,))
        assert torch.allclose(program.module()(inputs), model(inputs), atol=1e-6)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()
        self.head = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = checkpoint(self.body, inputs, use_reentrant=False)
        out: Tensor = self.head(hidden)
        return out


@pytest.mark.parametrize("layer", ["body.0", "body.2"])
def test_activation_checkpointing_trains_with_kernels_and_frames(layer: str) -> None:
    model = Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    transport = MemoryTransport()
    handle = attach(model, optimizer, example_input=torch.zeros(2, 6), settings=settings(), transport=transport)
    transport.decide("load_kernel", layer=layer, blueprint="parallel_expansion")
    for _ in range(20):
        inputs = torch.randn(16, 6)
        loss = F.cross_entropy(model(inputs), (inputs[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        handle.step(loss=loss)
    assert handle.stats.executed == 1
    assert handle.stats.errors == 0
    performance = transport.records("telemetry.execution.kernel_performance")
    assert [sorted(frame.layer_id) for frame in performance] == [["body.0", "body.2", "head"]] * 4
    assert attached_layer(model, layer).performance.errors == 0
    handle.close()
