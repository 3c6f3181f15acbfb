"""A plain PyTorch loop: validation, accumulated gradients, a checkpoint, and a second process that resumes from it.

python examples/pytorch_loop.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, attach
from tamiyo.host.testing import MemoryTransport

EPOCHS = 4
MICRO_BATCHES = 2


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return points [count, 8], and whether the product of the first two coordinates is positive."""
    points = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return points, (points[:, 0] * points[:, 1] > 0).long()


def make(transport: MemoryTransport) -> tuple[nn.Module, torch.optim.Optimizer, Handle]:
    """Return a model, its optimizer and its handle, as every process of the run makes them."""
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = attach(
        model,
        optimizer,
        example_input=torch.zeros(2, 8),
        run_id="quadrants-1",
        loss_fn=F.cross_entropy,
        held_out=samples(256, seed=1),  # never trained on
        transport=transport,  # leave it out to connect to Kafka
    )
    handle.on_event(print)
    return model, optimizer, handle


def train(model: nn.Module, optimizer: torch.optim.Optimizer, handle: Handle, epochs: range) -> None:
    """Train for some epochs; every step of the optimizer takes two micro-batches."""
    inputs, labels = samples(2048, seed=0)
    held_inputs, held_labels = samples(256, seed=1)

    def validate() -> tuple[Tensor, Tensor]:
        model.eval()
        with torch.no_grad():
            logits = model(held_inputs)
        model.train()
        return F.cross_entropy(logits, held_labels), (logits.argmax(1) == held_labels).float().mean()

    for epoch in epochs:
        handle.epoch = epoch
        for batch in torch.randperm(len(inputs)).split(64):
            losses = []
            for part in batch.chunk(MICRO_BATCHES):
                loss = F.cross_entropy(model(inputs[part]), labels[part])
                (loss / MICRO_BATCHES).backward()
                losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
            handle.step(loss=torch.stack(losses).mean())  # once a step of the optimizer, not a micro-batch
        loss, accuracy = handle.validate(validate)
        print(f"epoch {epoch}: held-out loss {loss:.3f}, accuracy {accuracy:.2f}")


def main() -> None:
    """Train, grow, save; then resume in what could be another process."""
    torch.manual_seed(0)
    file = Path(tempfile.mkdtemp()) / "run.pt"

    transport = MemoryTransport()
    model, optimizer, handle = make(transport)
    with handle:  # closes the run at the end, after an error, and on Ctrl-C
        train(model, optimizer, handle, range(1))
        transport.decide("load_kernel", layer="0", blueprint="bottleneck")
        train(model, optimizer, handle, range(1, EPOCHS // 2))
        with handle.outside():  # what is not training does not count as such
            torch.save(handle.state_dict(), file)
    print(handle)

    model, optimizer, handle = make(MemoryTransport())
    with handle:
        handle.load_state_dict(torch.load(file))  # kernels too
        train(model, optimizer, handle, range(EPOCHS // 2, EPOCHS))
    stats = handle.stats
    print(f"step {stats.step}: {stats.parameters} parameters, {stats.kernel_parameters} of them in kernels")


if __name__ == "__main__":
    main()
