"""Train a compiled network that grows: it is compiled anew when it has changed, and at no other step.

python examples/compiled_model.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host import HostSettings, attach
from tamiyo.host.testing import MemoryTransport

STEPS = 60
BACKEND = "eager"  # "inductor", the default of torch.compile, needs a C++ compiler


def main() -> None:
    """Compile the whole network as one graph, attach, train, and let it grow half-way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    transport = MemoryTransport()  # leave it out to connect to Kafka

    with attach(
        compiled,
        optimizer,
        example_input=torch.zeros(2, 8),
        settings=HostSettings(parameter_budget=5_000),
        transport=transport,
    ) as handle:
        for step in range(1, STEPS + 1):
            inputs = torch.randn(64, 8)
            loss = F.cross_entropy(compiled(inputs), (inputs.prod(dim=1) > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)
            if step == STEPS // 2:
                transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")

    inputs = torch.randn(4, 8)
    print(f"{handle.stats.executed} kernel, {handle.stats.parameters} parameters")
    print(f"compiled and plain agree: {torch.allclose(compiled(inputs), model(inputs), atol=1e-5)}")


if __name__ == "__main__":
    main()
