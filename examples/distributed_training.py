"""Data-parallel training of a network that grows, in two processes on this machine.

python examples/distributed_training.py
"""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tamiyo.host import HostSettings, attach
from tamiyo.host.testing import MemoryTransport

RANKS = 2
STEPS = 60


def train(rank: int, rendezvous: str) -> None:
    """Train one rank; torchrun would start it, and init_process_group would need no arguments."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    transport = MemoryTransport()  # leave it out to connect to Kafka: rank 0 does

    # Every rank calls attach and handle.step; rank 0 publishes and receives for all.
    handle = attach(
        model,
        optimizer,
        example_input=torch.zeros(2, 8),
        settings=HostSettings(parameter_budget=5_000),
        transport=transport,
    )
    generator = torch.Generator().manual_seed(rank)
    for step in range(1, STEPS + 1):
        inputs = torch.randn(64, 8, generator=generator)
        loss = F.cross_entropy(model(inputs), (inputs.prod(dim=1) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        handle.step(loss=loss)
        if rank == 0 and step == STEPS // 2:
            transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    handle.close()

    own = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    everyone = [torch.empty_like(own) for _ in range(RANKS)]
    dist.all_gather(everyone, own)
    if rank == 0:
        print(f"{handle.stats.executed} kernel, {handle.stats.parameters} parameters")
        print(f"parameters of all ranks are equal: {all(torch.equal(own, each) for each in everyone)}")
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, args=(str(Path(folder) / "rendezvous"),), nprocs=RANKS)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
