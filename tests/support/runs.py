"""Factories: small runs attached to a transport in memory, and the records that reach them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, HostSettings, LayerSpec, attach
from tamiyo.host._kernels.compiler import compile_kernel
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.adaptation import (
    Action,
    AdaptationDecision,
    AdaptationOutcome,
    CompiledKernel,
    ControlCommand,
    KernelStatus,
)
from tamiyo.schemas.identity import decision_id, kernel_id
from tamiyo.schemas.record import Tensor as RecordTensor
from tamiyo.schemas.topics import OUTCOMES, Topic
from tests.support.layers import attached_layer

RUN = "run-1"
STORE = "memory://runs"


def decision(
    name: str = "d1", *, type: str = "load_kernel", layer: str | None = "0", blueprint: str | None = None, **more: Any
) -> AdaptationDecision:
    """A decision about RUN, as a policy would have made it."""
    own_id = decision_id(name)
    load = type == "load_kernel"
    blueprint = blueprint or ("parallel_expansion" if load else None)
    values: dict[str, Any] = {
        "run_id": RUN,
        "decision_id": own_id,
        "graph_id": name,
        "step": 0,
        "time_ms": 1,
        "type": type,
        "layer_id": layer,
        "blueprint": blueprint,
        "kernel_id": kernel_id(own_id) if load else None,
        "proposed": Action(type=type, layer_id=layer, blueprint=blueprint),
        "confidence": 0.9,
        "uncertainty": 0.1,
        "urgency": 0.5,
        "predicted_reward": 0.0,
        "value": 0.0,
        "method": "baseline",
        "policy_version": 0,
        "seed": 1,
        "temperature": 1.0,
        "layers": ["0"],
        "kinds": ["load_kernel:parallel_expansion"],
        "action_index": 1,
        "mask": b"\x01\x01",
        "probabilities": RecordTensor.of([0.5, 0.5]),
        "log_probability": -0.6931472,
        "entropy": 0.6931472,
    }
    return AdaptationDecision(**values | more)


def compiled(request: AdaptationDecision, spec: LayerSpec, **more: Any) -> CompiledKernel:
    """Compile the kernel of a decision into STORE, and return the kernels stage's record of it."""
    assert request.kernel_id is not None
    assert request.blueprint is not None
    assert request.layer_id is not None
    stored = compile_kernel(spec, request.blueprint, request.kernel_id, KernelStore(STORE), parameter_budget=10**6)
    values: dict[str, Any] = {
        "run_id": RUN,
        "kernel_id": request.kernel_id,
        "decision_id": request.decision_id,
        "layer_id": request.layer_id,
        "blueprint": request.blueprint,
        "status": KernelStatus.COMPILED,
        "checksum": stored.checksum,
        "size_bytes": stored.size_bytes,
        "parameters": stored.parameters,
    }
    return CompiledKernel(**values | more)


def order(run_id: str = RUN, *, time_ms: int = 1, **more: Any) -> ControlCommand:
    """An operator's order."""
    return ControlCommand(run_id=run_id, time_ms=time_ms, **more)


def network(seed: int = 0) -> nn.Sequential:
    """A convolution, then two Linear layers: "0" (2 -> 3 channels), "3" (12 -> 4), "5" (4 -> 2); 83 parameters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)
    )


def data(samples: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [samples, 2, 8] and labels that depend on them."""
    inputs = torch.randn(samples, 2, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, 0].mean(dim=1) > 0).long()


def settings(**more: Any) -> HostSettings:
    """Quick to measure, nothing to wait for, kernels in memory, no governor in the way."""
    values: dict[str, Any] = {
        "store_url": STORE,
        "sample_interval": 2,
        "growth_interval": 4,
        "contribution_interval": 2,
        "overhead_budget": 1e6,
        "cooldown_steps": 0,
        "ramp_steps": 4,
        "drain_s": 0.0,
        "parameter_budget": 10_000,
    }
    return HostSettings(**values | more)


@dataclass
class Run:
    """An attached run with a transport in memory."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    handle: Handle
    transport: MemoryTransport
    losses: list[float] = field(default_factory=list)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs, labels = data(seed=len(self.losses))
            loss = F.cross_entropy(self.model(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.losses.append(float(loss.detach()))
            self.handle.step(loss=loss)

    def layer(self, layer_id: str = "0") -> KasminaLayer:
        return attached_layer(self.model, layer_id)

    def load(self, layer: str = "0", blueprint: str = "parallel_expansion") -> AdaptationDecision:
        """Decide to load a kernel; its record arrives too."""
        return self.transport.decide("load_kernel", layer=layer, blueprint=blueprint)

    def records(self, topic: Topic) -> list[Any]:
        return self.transport.records(topic.name)

    @property
    def outcomes(self) -> list[AdaptationOutcome]:
        return self.records(OUTCOMES)


def run(
    model: nn.Module | None = None,
    *,
    held_out: bool = True,
    lr: float = 0.01,
    transport: MemoryTransport | None = None,
    **more: Any,
) -> Run:
    """Attach a network; `more` are settings, or what `attach` takes."""
    model = model or network()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    transport = transport or MemoryTransport()
    options = {name: more.pop(name) for name in ("layers", "protected", "num_seeds", "example_input") if name in more}
    handle = attach(
        model,
        optimizer,
        run_id=RUN,
        loss_fn=F.cross_entropy if held_out else None,
        held_out=data(32, seed=10_000) if held_out else None,
        settings=settings(**more),
        transport=transport,
        **{"example_input": data(2)[0]} | options,
    )
    return Run(model, optimizer, handle, transport)
