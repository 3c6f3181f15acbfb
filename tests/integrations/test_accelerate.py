"""accelerate: growth while it trains, checkpoint and resume, errors, and several micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.accelerate import AcceleratedRun, attach_accelerated
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tests.support.runs import data, network, settings


class Training:
    """A loop of accelerate on a small network."""

    def __init__(self, *, seed: int = 0, micro_batches: int = 1) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro_batches)
        plain = network(seed)
        optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
        loader: Any = DataLoader(TensorDataset(*data(64)), batch_size=8)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4)
        self.model: nn.Module
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            plain, optimizer, loader, schedule
        )
        self.transport = MemoryTransport()
        self.run: AcceleratedRun = attach_accelerated(
            self.accelerator,
            self.model,
            self.optimizer,
            example_input=torch.zeros(2, 2, 8),
            transport=self.transport,
            settings=settings(),
            run_id="run-1",
        )
        self.losses: list[float] = []

    def epoch(self, *, grow_at: int | None = None, fail_at: int | None = None) -> None:
        for number, (inputs, labels) in enumerate(self.loader):
            if number == grow_at:
                self.transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
            if number == fail_at:
                raise KeyboardInterrupt
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(inputs), labels)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.run.step(loss)
                self.schedule.step()
                self.optimizer.zero_grad()
            self.losses.append(loss.item())


def test_the_network_grows_while_it_trains() -> None:
    training = Training()
    with training.run as run:
        training.epoch(grow_at=2)
    stats = run.handle.stats
    assert (stats.step, stats.executed, stats.errors) == (8, 1, 0)
    assert training.transport.closed
    frame = training.transport.records(MODEL_PERFORMANCE.name)[0]
    assert frame.train_loss == pytest.approx(sum(training.losses[:2]) / 2)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_a_step_is_a_step_of_the_optimizer(micro_batches: int) -> None:
    """accelerate steps at the end of an epoch too: of 8 batches by 3, the third step has two."""
    training = Training(micro_batches=micro_batches)
    training.epoch()
    assert training.run.handle.stats.step == {2: 4, 3: 3}[micro_batches]
    frame = training.transport.records(MODEL_PERFORMANCE.name)[0]
    assert frame.train_loss == pytest.approx(sum(training.losses[: 2 * micro_batches]) / 2 / micro_batches)


def test_a_resumed_training_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = Training()
    whole.epoch(grow_at=2)
    whole.accelerator.save_state(str(tmp_path))
    whole.epoch()
    resumed = Training(seed=7)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch()
    assert resumed.losses == whole.losses[8:]
    handle = resumed.run.handle
    assert handle.stats.step == 16
    assert handle.stats.kernel_parameters == whole.run.handle.stats.kernel_parameters > 0
    inputs = data(32, seed=5)[0]
    assert torch.equal(resumed.model(inputs), whole.model(inputs))
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_a_training_goes_back_to_a_state_with_fewer_kernels(tmp_path: Path) -> None:
    training = Training()
    training.epoch()
    training.accelerator.save_state(str(tmp_path))
    training.epoch(grow_at=2)
    assert training.run.handle.stats.kernel_parameters > 0
    training.accelerator.load_state(str(tmp_path))
    assert training.run.handle.stats.kernel_parameters == 0
    assert training.run.handle.stats.step == 8
    trained = {parameter for group in training.optimizer.param_groups for parameter in group["params"]}
    assert trained == set(training.model.parameters())
    training.epoch()


def test_the_run_is_closed_on_ctrl_c() -> None:
    training = Training()
    with pytest.raises(KeyboardInterrupt), training.run:
        training.epoch(fail_at=3)
    assert training.transport.closed


def test_sharded_parameters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType.FSDP)
    model = network()
    with pytest.raises(ConfigurationError, match="FSDP shards the parameters"):
        attach_accelerated(
            accelerator, model, torch.optim.Adam(model.parameters()), example_input=torch.zeros(2, 2, 8),
            transport=MemoryTransport(),
        )  # fmt: skip
