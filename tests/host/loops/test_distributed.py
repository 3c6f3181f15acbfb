"""Data-parallel training: one run, one decision for all ranks at the same step, equal parameters."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, HostSettings, attach
from tamiyo.host._common.clock import SystemClock, using
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError, KernelError
from tests.host.loops.ranks import Report, needs_gloo, ranks
from tests.support.layers import attached_layer

pytestmark = needs_gloo

STEPS = 30
EXCHANGE = 5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def settings(**more: Any) -> HostSettings:
    values = {
        "sample_interval": 5,
        "exchange_interval": EXCHANGE,
        "cooldown_steps": 0,
        "ramp_steps": 4,
        "overhead_budget": 1e6,
        "parameter_budget": 10_000,
        "drain_s": 0.0,
    }
    return HostSettings(**values | more)


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    inputs = torch.randn(16, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long()


class Loop:
    """A training loop of one rank."""

    def __init__(self, *, accumulate: int = 1, **more: Any) -> None:
        self.model = network()
        self.ddp = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adam(self.ddp.parameters(), lr=0.01)
        self.transport = MemoryTransport()
        self.accumulate = accumulate
        self.largest_norm = 1.0
        self.handle: Handle = attach(
            self.ddp, self.optimizer, example_input=torch.zeros(2, 6), settings=settings(**more),
            transport=self.transport,
        )  # fmt: skip
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            for micro in range(self.accumulate):
                inputs, labels = batch(dist.get_rank(), self.accumulate * self.step + micro)
                last = micro == self.accumulate - 1
                if last:
                    loss = F.cross_entropy(self.ddp(inputs), labels) / self.accumulate
                    loss.backward()
                else:
                    with self.ddp.no_sync():
                        loss = F.cross_entropy(self.ddp(inputs), labels) / self.accumulate
                        loss.backward()
            nn.utils.clip_grad_norm_(self.ddp.parameters(), self.largest_norm)
            self.optimizer.step()
            self.step += 1
            self.handle.step(loss=loss)

    def report(self) -> Report:
        layer = attached_layer(self.model, "0")
        return {
            "run": self.handle.run_id,
            "names": [name for name, _ in self.model.named_parameters()],
            "parameters": [p.tolist() for p in self.model.parameters()],
            "loaded": [seed.loaded_step for seed in layer.seeds if seed.loaded],
            "kernels": [seed.kernel_id for seed in layer.seeds if seed.loaded],
            "states": [seed.state.value for seed in layer.seeds],
            "errors": self.handle.stats.errors,
            "frames": len(self.transport.records("telemetry.model.performance_metrics")),
            "outcomes": [o.status.value for o in self.transport.records("tamiyo.adaptation.outcomes")],
            "optimizer": [len(group["params"]) for group in self.optimizer.param_groups],
        }


def grow(rank: int, size: int) -> Report:
    loop = Loop()
    loop.train(3)
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(STEPS)
    return loop.report()


def assert_equal(reports: list[Report]) -> None:
    first = reports[0]
    for other in reports[1:]:
        assert other["names"] == first["names"]
        assert other["loaded"] == first["loaded"]
        assert other["kernels"] == first["kernels"]
        for name, mine, theirs in zip(first["names"], first["parameters"], other["parameters"], strict=True):
            assert mine == theirs, name


def assert_grown(reports: list[Report]) -> None:
    size = len(reports)
    assert_equal(reports)
    assert reports[0]["loaded"] == [EXCHANGE]
    assert len({report["run"] for report in reports}) == 1
    assert [report["outcomes"] for report in reports] == [["executed"]] * size
    assert reports[0]["frames"] > 0
    assert [report["frames"] for report in reports[1:]] == [0] * (size - 1)
    assert [report["errors"] for report in reports] == [0] * size


def accumulate(rank: int, size: int) -> Report:
    loop = Loop(accumulate=3)
    if rank == 0:
        loop.transport.decide("load_kernel", layer="2", blueprint="bottleneck")
    loop.train(STEPS)
    return loop.report()


def test_gradients_of_kernels_are_averaged_under_accumulation(two_ranks: dict[str, list[Report]]) -> None:
    assert_equal(two_ranks["accumulate"])


def one_step(rank: int, size: int) -> dict[str, Any]:
    """A step with a kernel, and its gradient as the same network has it on both batches together."""
    loop = Loop(ramp_steps=1)
    loop.largest_norm = 1e9  # no clipping
    loop.train(EXCHANGE - 1)
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(5)
    before, step = copy.deepcopy(loop.model), loop.step
    loop.train(1)
    losses = [F.cross_entropy(before(inputs), labels) for inputs, labels in (batch(each, step) for each in range(size))]
    before.zero_grad()
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    gradients, expected = (
        [p.grad.flatten().tolist() for p in attached_layer(model, "0").kernels.parameters() if p.grad is not None]
        for model in (loop.model, before)
    )
    return loop.report() | {"gradients": gradients, "expected": expected}


def test_the_gradient_of_a_kernel_is_that_of_all_batches_together(two_ranks: dict[str, list[Report]]) -> None:
    reports = two_ranks["one_step"]
    assert_equal(reports)
    assert reports[0]["gradients"] == reports[1]["gradients"]
    for mine, expected in zip(reports[0]["gradients"], reports[0]["expected"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert any(mine)


def unload_and_resume(rank: int, size: int) -> Report:
    loop = Loop()
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="low_rank")
    loop.train(12)
    saved = copy.deepcopy(loop.handle.state_dict())
    loop.train(5)
    again = Loop()
    again.handle.load_state_dict(saved)
    again.step = 12
    again.train(5)
    equal = all(torch.equal(a, b) for a, b in zip(loop.model.parameters(), again.model.parameters(), strict=True))
    if rank == 0:
        again.transport.decide("unload_kernel", layer="0")
    again.train(15)
    return again.report() | {"resumed": equal}


def test_a_resumed_run_goes_on_alike_and_an_unload_leaves_every_rank(two_ranks: dict[str, list[Report]]) -> None:
    reports = two_ranks["unload_and_resume"]
    assert_equal(reports)
    assert [report["resumed"] for report in reports] == [True, True]
    assert [report["kernels"] for report in reports] == [[], []]


def fail_on_one_rank(rank: int, size: int) -> Report:
    def missing(self: KernelCache, *_: object, **__: object) -> None:
        raise KernelError("this rank is out of memory")

    loop = Loop()
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="low_rank")
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(KernelCache, "get", missing)
        loop.train(STEPS)
    return loop.report()


def test_a_kernel_that_one_rank_cannot_load_leaves_all(two_ranks: dict[str, list[Report]]) -> None:
    reports = two_ranks["fail_on_one_rank"]
    assert_equal(reports)
    assert [report["kernels"] for report in reports] == [[], []]
    assert [report["optimizer"] for report in reports] == [[4], [4]]


class Fast(SystemClock):
    """A clock that is far ahead soon."""

    def seconds(self) -> float:
        return 1e6 * time.perf_counter()


def wait_by_another_clock(rank: int, size: int) -> Report:
    loop = Loop(compile_timeout_s=1000)
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="low_rank")
        kernel = loop.transport._inbox.pop()
    with using(Fast() if rank == 1 else SystemClock()):
        loop.train(12)
        if rank == 0:
            loop.transport._inbox.append(kernel)
        loop.train(8)
    return loop.report()


def test_all_ranks_wait_for_a_kernel_by_one_clock(two_ranks: dict[str, list[Report]]) -> None:
    reports = two_ranks["wait_by_another_clock"]
    assert_equal(reports)
    assert [report["loaded"] for report in reports] == [[15], [15]]


def diverge_on_one_rank(rank: int, size: int) -> Report:
    loop = Loop()
    if rank == 0:
        loop.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    loop.train(8)
    layer = attached_layer(loop.model, "0")
    kernel = next(iter(layer.kernels.values()))
    original = kernel.hidden

    def hidden(layer_input: Tensor, layer_output: Tensor) -> Tensor:
        values: Tensor = original(layer_input, layer_output)
        return values / 0 if rank == 1 and loop.step == 8 else values

    kernel.hidden = hidden  # type: ignore[method-assign, assignment]
    loop.train(STEPS)
    return loop.report() | {"finite": all(bool(p.isfinite().all()) for p in loop.model.parameters())}


def test_a_kernel_that_fails_for_one_ranks_batch_recovers_on_all(
    two_ranks: dict[str, list[Report]],
) -> None:
    reports = two_ranks["diverge_on_one_rank"]
    assert_equal(reports)
    assert [report["finite"] for report in reports] == [True, True]
    assert reports[0]["states"] == reports[1]["states"]


def independent(rank: int, size: int) -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    transport = MemoryTransport()
    handle = attach(
        model, optimizer, example_input=torch.zeros(2, 6), settings=settings(), transport=transport, distributed=False
    )
    if rank == 1:
        transport.decide("load_kernel", layer="0", blueprint="low_rank")
    for step in range(3):
        inputs, labels = batch(rank, step)
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        handle.step(loss=0.1)
    handle.close()
    return {"run": handle.run_id, "kernels": handle.stats.kernel_parameters}


def test_ranks_can_be_runs_of_their_own(two_ranks: dict[str, list[Report]]) -> None:
    first, second = two_ranks["independent"]
    assert first["run"] != second["run"]
    assert first["kernels"] == 0 < second["kernels"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Report]]:
    # One set of processes for all: starting them takes longer than what they do.
    works = (
        grow, accumulate, one_step, unload_and_resume, fail_on_one_rank, wait_by_another_clock, diverge_on_one_rank,
        independent,
    )  # fmt: skip
    return ranks(works, 2, tmp_path_factory.mktemp("ranks"))


def test_all_ranks_execute_a_decision_at_the_same_step_and_stay_equal(two_ranks: dict[str, list[Report]]) -> None:
    assert_grown(two_ranks["grow"])


def test_three_ranks_do_too(tmp_path: Path) -> None:
    assert_grown(ranks((grow,), 3, tmp_path)["grow"])


def test_distributed_training_needs_a_process_group() -> None:
    model = network()
    with pytest.raises(ConfigurationError, match="init_process_group"):
        attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), example_input=torch.zeros(2, 6), distributed=True,
            transport=MemoryTransport(),
        )  # fmt: skip


def test_data_parallel_is_refused_with_what_to_use_instead() -> None:
    model = nn.DataParallel(network())
    with pytest.raises(ConfigurationError, match="DistributedDataParallel"):
        attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), example_input=torch.zeros(2, 6),
            transport=MemoryTransport(),
        )  # fmt: skip
