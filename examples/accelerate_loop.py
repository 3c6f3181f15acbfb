"""Tamiyo in a loop of accelerate: accumulated gradients, a saved state, and a second process that resumes from it.

python examples/accelerate_loop.py
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.accelerate import attach_accelerated


def train(folder: str, epochs: int, *, resume: bool) -> None:
    """Train for some epochs, and save the state."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    points = torch.randn(2048, 8, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(points, (points[:, 0] * points[:, 1] > 0).long())
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(dataset, batch_size=32, shuffle=True))

    transport = MemoryTransport()  # leave transport= out to connect to Kafka
    run = attach_accelerated(accelerator, model, optimizer, example_input=torch.zeros(2, 8), transport=transport)
    run.handle.on_event(print)
    if resume:
        accelerator.load_state(folder)  # kernels too
    with run:  # closes it at the end, after an error, and on Ctrl-C
        for _ in range(epochs):
            for number, (inputs, labels) in enumerate(loader):
                if number == 20 and not resume:
                    transport.decide("load_kernel", layer="0", blueprint="bottleneck")
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(inputs), labels)
                    accelerator.backward(loss)
                    optimizer.step()
                    run.step(loss)  # with every micro-batch; it follows accelerate's count
                    optimizer.zero_grad()
    accelerator.save_state(folder)
    stats = run.handle.stats
    print(f"step {stats.step}: training loss {loss.item():.3f}, {stats.kernel_parameters} parameters in kernels")


def main() -> None:
    """Train, then resume in what could be another process."""
    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    train(folder, 1, resume=False)
    train(folder, 2, resume=True)


if __name__ == "__main__":
    main()
