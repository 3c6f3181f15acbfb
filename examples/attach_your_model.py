"""Attach Tamiyo to a training loop. A transport in memory takes Kafka's place, so nothing else has to run.

python examples/attach_your_model.py
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import HostSettings, attach, export
from tamiyo.host.testing import MemoryTransport

STEPS = 600


def spirals(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points [samples, 2] on two interleaved spirals, and which spiral each one belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    turn = 3 * math.pi * torch.rand(samples, generator=generator).sqrt()
    angle = turn + math.pi * labels
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1)
    return points + 0.1 * torch.randn(samples, 2, generator=generator), labels


def main() -> None:
    """Train a network that is too small, and let it grow half-way."""
    torch.manual_seed(0)
    inputs, labels = spirals(1024, seed=0)
    held_out = spirals(512, seed=1)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    # Without `transport`, attach connects to TAMIYO_KAFKA_BOOTSTRAP_SERVERS and a policy decides.
    transport = MemoryTransport()
    handle = attach(
        model,
        optimizer,
        example_input=inputs[:32],
        loss_fn=F.cross_entropy,
        held_out=held_out,
        settings=HostSettings(parameter_budget=1_000),
        transport=transport,
    )

    def report(step: int) -> None:
        with torch.no_grad():
            loss = F.cross_entropy(model(held_out[0]), held_out[1])
        print(f"step {step}: held-out loss {loss:.3f}, {handle.stats.parameters} parameters")

    for step in range(1, STEPS + 1):
        batch = torch.randint(len(inputs), (64,))
        loss = F.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        handle.step(loss=loss)  # publishes telemetry, executes decisions that have arrived
        if step == STEPS // 2:
            report(step)
            transport.decide("load_kernel", layer="2", blueprint="parallel_expansion")
    handle.close()
    report(STEPS)

    (outcome,) = transport.records("tamiyo.adaptation.outcomes")
    print(f"{outcome.type} {outcome.blueprint} at layer {outcome.layer_id}: {outcome.status} at step {outcome.step}")
    frames = transport.records("telemetry.layer.health_signals")
    print(f"{len(frames)} frames of layer telemetry were published")

    plain = export(model)
    with torch.no_grad():
        equal = torch.allclose(plain(held_out[0]), model(held_out[0]), atol=1e-6)
    print(f"exported as plain torch modules, equal outputs: {equal}")


if __name__ == "__main__":
    main()
