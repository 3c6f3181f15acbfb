"""A model that is wrapped after it was attached, as a resumed training does: it grows and shrinks, or it is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tests.host.loops.ranks import Report, needs_gloo, ranks
from tests.host.loops.test_distributed import batch, network, settings
from tests.support.layers import attached_layer

pytestmark = [*needs_gloo, pytest.mark.timeout(300)]


class Outer(nn.Module):
    """A framework's module around the user's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.inner(inputs)
        return output


class Resumed:
    """A loop that attaches first, perhaps loads a state, and wraps then."""

    def __init__(self, saved: dict[str, Any] | None = None, *, outer: bool = False, own: bool = True) -> None:
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.transport = MemoryTransport()
        self.handle: Handle = attach(
            self.model, self.optimizer, example_input=torch.zeros(2, 6), settings=settings(), transport=self.transport
        )
        if saved is not None:
            if own:
                self.handle.load_state_dict(saved)
            else:  # as the Trainer of Hugging Face: the model first, then the wrapper, then the rest
                self.model.load_state_dict(saved["model"])
        self.ddp = nn.parallel.DistributedDataParallel(Outer(self.model) if outer else self.model)
        if saved is not None and not own:
            self.handle.load_state_dict(saved)
        self.step = 0 if saved is None else int(saved["step"])

    def train(self, steps: int) -> None:
        for _ in range(steps):
            inputs, labels = batch(dist.get_rank(), self.step)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.ddp(inputs), labels)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            self.handle.step(loss=loss)

    def report(self) -> Report:
        return {
            "parameters": [p.tolist() for p in self.model.parameters()],
            "kernels": [seed.kernel_id for seed in attached_layer(self.model, "0").seeds if seed.loaded],
            "errors": self.handle.stats.errors,
        }


def grown() -> Resumed:
    loop = Resumed()
    if dist.get_rank() == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(12)
    return loop


def resume(outer: bool, own: bool) -> Report:
    first = grown()
    saved = copy.deepcopy(first.handle.state_dict())
    loop = Resumed(saved, outer=outer, own=own)
    kernels = [p for name, p in loop.model.named_parameters() if "kernels" in name]
    before = [p.detach().clone() for p in kernels]
    for each in (first, loop):
        each.train(5)
    whole = [p.tolist() for p in first.model.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, kernels, strict=True)]
    report = loop.report() | {"whole": whole, "moved": moved}
    if dist.get_rank() == 0:
        loop.transport.decide("unload_kernel", layer="0")
    loop.train(15)
    return report | {"end": loop.report()}


def handle_first(rank: int, size: int) -> Report:
    return resume(outer=False, own=True)


def within_another(rank: int, size: int) -> Report:
    return resume(outer=True, own=True)


def model_first(rank: int, size: int) -> Report:
    return resume(outer=False, own=False)


def second_run(rank: int, size: int) -> Report:
    """A run that takes over the kernels of an earlier one, and is wrapped before and after `attach`."""
    first = grown()
    first.handle.detach()
    reports = []
    for early in (True, False):
        loop = object.__new__(Resumed)
        loop.model, loop.step = first.model, first.step
        if early:
            loop.ddp = nn.parallel.DistributedDataParallel(first.model)
        loop.optimizer = torch.optim.Adam(first.model.parameters(), lr=0.01)
        loop.transport = MemoryTransport()
        loop.handle = attach(
            first.model, loop.optimizer, example_input=torch.zeros(2, 6), settings=settings(), transport=loop.transport
        )
        if not early:
            loop.ddp = nn.parallel.DistributedDataParallel(first.model)
        loop.train(5)
        reports.append(loop.report())
        if not early and rank == 0:
            loop.transport.decide("unload_kernel", layer="0")
        loop.train(15)
        reports.append(loop.report())
        loop.handle.detach()
    return {"reports": reports}


def different_states(rank: int, size: int) -> Report:
    loop = grown()
    saved = copy.deepcopy(loop.handle.state_dict())
    saved["step"] -= rank
    with pytest.raises(KernelError, match=r"steps 12, 11\): call load_state_dict with the same one") as caught:
        loop.handle.load_state_dict(saved)
    loop.train(3)
    return loop.report() | {"error": str(caught.value)}


def refused(rank: int, size: int) -> Report:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    found = {}
    loop = Resumed()
    with pytest.raises(ConfigurationError) as caught:
        nn.DataParallel(loop.model)
    found["data_parallel"] = str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        FullyShardedDataParallel(Outer(loop.model), device_id=torch.device("cpu"))
    found["fsdp"] = str(caught.value)
    sharded = Resumed()
    fully_shard(sharded.model, mesh=dist.init_device_mesh("cpu", (size,)))
    if rank == 0:
        sharded.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    for _ in range(6):
        sharded.handle.step(loss=0.5)
    found["fully_shard"] = sharded.transport.records("tamiyo.adaptation.outcomes")[-1].reason
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    transport = MemoryTransport()
    alone = attach(
        model, optimizer, example_input=torch.zeros(2, 6), settings=settings(), transport=transport, distributed=False
    )
    with pytest.raises(ConfigurationError) as caught:
        nn.parallel.DistributedDataParallel(model)
    found["alone"] = str(caught.value)
    alone.detach()
    nn.parallel.DistributedDataParallel(model)  # its run has ended
    ddp = nn.parallel.DistributedDataParallel(network())
    with pytest.raises(ConfigurationError) as caught:
        attach(
            ddp, torch.optim.Adam(ddp.parameters()), example_input=torch.zeros(2, 6), transport=MemoryTransport(),
            distributed=False,
        )  # fmt: skip
    return found | {"attach": str(caught.value)}


def uneven(rank: int, size: int) -> Report:
    """Rank 1 calls `handle.step` less often: rank 0 does not wait for it longer than the timeout."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    transport = MemoryTransport()
    handle = attach(
        model, optimizer, example_input=torch.zeros(2, 6), transport=transport,
        settings=settings(exchange_timeout_s=0.5, sample_interval=50),
    )  # fmt: skip
    if rank == 0:
        transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    for _ in range(20 if rank == 0 else 4):
        model(batch(rank, 0)[0]).sum().backward()
        optimizer.step()
        handle.step(loss=0.5)
    dist.barrier()
    handle.close()
    return {"errors": handle.stats.errors, "kernels": handle.stats.kernel_parameters}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Report]]:
    works = (handle_first, within_another, model_first, second_run, different_states, refused, uneven)
    return ranks(works, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", ["handle_first", "within_another", "model_first"])
def test_a_resumed_run_that_is_wrapped_later_goes_on_alike(two_ranks: dict[str, list[Report]], name: str) -> None:
    reports = two_ranks[name]
    for report in reports:
        assert report["parameters"] == report["whole"] == reports[0]["parameters"]
        assert report["kernels"] == reports[0]["kernels"] != []
        assert all(report["moved"])
        assert report["end"]["kernels"] == []
        assert report["end"]["parameters"] == reports[0]["end"]["parameters"]
        assert report["end"]["errors"] == 0


def test_a_second_run_takes_over_the_kernels_of_the_first(two_ranks: dict[str, list[Report]]) -> None:
    first, second = (report["reports"] for report in two_ranks["second_run"])
    assert first == second
    assert [bool(report["kernels"]) for report in first] == [True, True, True, False]
    assert [report["errors"] for report in first] == [0] * 4


def test_ranks_that_load_different_states_are_refused_and_go_on(two_ranks: dict[str, list[Report]]) -> None:
    first, second = two_ranks["different_states"]
    assert first["parameters"] == second["parameters"]
    assert first["errors"] == second["errors"] == 0


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("data_parallel", "use DistributedDataParallel; the model is attached"),
        ("fsdp", "its parameters are shards"),
        ("fully_shard", "its parameters are shards"),
        ("alone", "attached with each rank as a run of its own"),
        ("attach", "attached with each rank as a run of its own"),
    ],
)
def test_a_wrapper_that_cannot_work_is_refused(two_ranks: dict[str, list[Report]], name: str, part: str) -> None:
    for report in two_ranks["refused"]:
        assert part in report[name]


def test_a_rank_that_others_do_not_meet_trains_on(two_ranks: dict[str, list[Report]]) -> None:
    first, second = two_ranks["uneven"]
    assert (first["errors"], first["kernels"]) == (1, 0)
    assert second["kernels"] == 0


def one_process(rank: int, size: int) -> Report:
    """torchrun with one process: the wrapper is there, and nothing to average."""
    return resume(outer=True, own=True)


def test_one_process_alone_is_wrapped_too(tmp_path: Path) -> None:
    (report,) = ranks((one_process,), 1, tmp_path)["one_process"]
    assert report["parameters"] == report["whole"]
    assert report["end"]["kernels"] == []
    assert report["end"]["errors"] == 0
