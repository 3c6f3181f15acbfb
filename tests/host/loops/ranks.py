"""Run a function in several processes that train together, over gloo on the loopback interface."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Report = dict[str, Any]
Work = Callable[[int, int], Report]

needs_gloo = [
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed's gloo"),
    pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface"),
]


def ranks(works: Sequence[Work], size: int, folder: Path) -> dict[str, list[Report]]:
    """Run each `work(rank, size)` in one set of processes; return what each rank returns, by the work's name."""
    mp.spawn(_rank, args=(size, works, folder), nprocs=size)  # type: ignore[no-untyped-call]
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]
    return {work.__name__: [each[work.__name__] for each in found] for work in works}


def _rank(rank: int, size: int, works: Sequence[Work], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store, timeout=timedelta(seconds=60))
    try:
        (folder / f"{rank}.json").write_text(json.dumps({work.__name__: work(rank, size) for work in works}))
    finally:
        dist.destroy_process_group()
