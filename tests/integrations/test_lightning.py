"""Lightning: growth while it trains, checkpoint and resume, errors, and steps of several micro-batches."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.lightning import TamiyoCallback
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tests.support.runs import data, network, settings


class Module(pl.LightningModule):
    """A small classifier, whose example input is an attribute as Lightning has it."""

    example_input_array = torch.zeros(2, 2, 8)

    def __init__(self, seed: int = 0, fail_at: int | None = None, error: BaseException | None = None) -> None:
        super().__init__()
        self.net = network(seed)
        self.fail_at, self.error = fail_at, error
        self.losses: list[float] = []

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Any]:
        if self.error is not None and self.global_step == self.fail_at:
            raise self.error
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.losses.append(loss.item())
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch[1]).float().mean()}

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}


class Decide(pl.Callback):
    """Decides to load a kernel before a step."""

    def __init__(self, transport: MemoryTransport, at: dict[int, str]) -> None:
        self.transport, self.at = transport, at

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        layer = self.at.pop(trainer.global_step, None)
        if layer is not None:
            self.transport.decide("load_kernel", layer=layer, blueprint="parallel_expansion")


def loader(batch: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(64)), batch_size=batch)


def trainer(folder: Path, *callbacks: pl.Callback, **more: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder, "max_epochs": 2,
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **options | more)


def callback(transport: MemoryTransport, **more: Any) -> TamiyoCallback:
    return TamiyoCallback(transport=transport, settings=settings(), run_id="run-1", **more)


def test_the_network_grows_while_it_trains(tmp_path: Path) -> None:
    transport, module = MemoryTransport(), Module()
    tamiyo = callback(transport)
    trainer(tmp_path, tamiyo, Decide(transport, {3: "net.0", 5: "net.3"}), enable_checkpointing=False).fit(
        module, loader(), loader()
    )
    assert tamiyo.handle is not None
    stats = tamiyo.handle.stats
    assert (stats.step, stats.executed, stats.errors) == (16, 2, 0)
    assert transport.closed
    frames = transport.records(MODEL_PERFORMANCE.name)
    assert frames[0].train_loss == pytest.approx(sum(module.losses[:2]) / 2)
    assert frames[0].train_accuracy is not None
    assert [frame.epoch for frame in frames][::4] == [0, 1, 1]
    assert any(frame.validation_loss is not None for frame in frames)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_is_a_step_of_the_optimizer(tmp_path: Path, accumulate: int) -> None:
    transport, module = MemoryTransport(), Module()
    tamiyo = callback(transport)
    trainer(tmp_path, tamiyo, accumulate_grad_batches=accumulate, max_epochs=4, enable_checkpointing=False).fit(
        module, loader()
    )
    assert tamiyo.handle is not None
    assert tamiyo.handle.stats.step == 32 / accumulate
    first = transport.records(MODEL_PERFORMANCE.name)[0]
    assert (first.step, first.train_loss) == (2, pytest.approx(sum(module.losses[: 2 * accumulate]) / 2 / accumulate))


def fit(
    folder: Path, *, resume: str | None = None, at: dict[int, str], epochs: int = 4, accumulate: int = 1
) -> tuple[Module, Any, Any]:
    """Train; checkpoints are written after every epoch. Resumed modules start with other weights."""
    pl.seed_everything(0)
    transport, module = MemoryTransport(), Module(seed=0 if resume is None else 7)
    tamiyo = callback(transport)
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    run = trainer(
        folder, tamiyo, Decide(transport, dict(at)), save, max_epochs=epochs, accumulate_grad_batches=accumulate
    )
    run.fit(module, loader(), ckpt_path=resume)
    return module, run.optimizers[0], tamiyo.handle


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_training_continues_as_if_it_had_not_stopped(tmp_path: Path, accumulate: int) -> None:
    at = {3: "net.0", 5: "net.3"}
    whole, whole_optimizer, whole_handle = fit(tmp_path / "whole", at=at, accumulate=accumulate)
    fit(tmp_path / "first", at=at, epochs=2, accumulate=accumulate)
    (saved,) = (tmp_path / "first").glob("epoch=1*.ckpt")
    resumed, optimizer, handle = fit(tmp_path / "second", resume=str(saved), at={}, accumulate=accumulate)
    assert resumed.losses == whole.losses[16:]
    inputs = data(32, seed=5)[0]
    assert torch.equal(resumed(inputs), whole(inputs))
    assert handle.stats.step == whole_handle.stats.step == 32 / accumulate
    assert handle.stats.kernel_parameters == whole_handle.stats.kernel_parameters
    for own, expected in zip(
        optimizer.param_groups[0]["params"], whole_optimizer.param_groups[0]["params"], strict=True
    ):
        assert torch.equal(optimizer.state[own]["exp_avg"], whole_optimizer.state[expected]["exp_avg"])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    module = Module()
    save = ModelCheckpoint(tmp_path, filename="plain")
    trainer(tmp_path, save, max_epochs=1).fit(module, loader())
    other = Module()
    other.net.append(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"missing: net\.6\.bias, net\.6\.weight; unexpected: none"):
        trainer(tmp_path, callback(MemoryTransport())).fit(other, loader(), ckpt_path=str(tmp_path / "plain.ckpt"))


def test_a_checkpoint_from_before_tamiyo_resumes(tmp_path: Path) -> None:
    trainer(tmp_path, ModelCheckpoint(tmp_path, filename="plain"), max_epochs=1).fit(Module(), loader())
    tamiyo, module = callback(MemoryTransport()), Module(seed=7)
    trainer(tmp_path, tamiyo).fit(module, loader(), ckpt_path=str(tmp_path / "plain.ckpt"))
    assert tamiyo.handle is not None
    assert tamiyo.handle.stats.step == 8


@pytest.mark.parametrize("error", [ValueError("bad batch"), KeyboardInterrupt()])
def test_the_run_is_closed_after_an_error_and_on_ctrl_c(tmp_path: Path, error: BaseException) -> None:
    transport = MemoryTransport()
    before = signal.getsignal(signal.SIGINT)
    module = Module(fail_at=3, error=error)
    try:
        with pytest.raises((ValueError, SystemExit)):
            trainer(tmp_path, callback(transport), enable_checkpointing=False).fit(module, loader())
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from its first Ctrl-C on
    assert transport.closed
    assert transport.records(MODEL_PERFORMANCE.name)[-1].final


def test_a_part_of_the_module_can_be_attached(tmp_path: Path) -> None:
    transport, module = MemoryTransport(), Module()
    tamiyo = callback(transport, submodule="net", example_input=torch.zeros(2, 2, 8))
    trainer(tmp_path, tamiyo, Decide(transport, {2: "0"}), enable_checkpointing=False).fit(module, loader())
    assert tamiyo.handle is not None
    assert tamiyo.handle.model is module.net
    assert tamiyo.handle.stats.executed == 1


def test_without_an_example_it_is_refused(tmp_path: Path) -> None:
    class Bare(Module):
        example_input_array = None

    with pytest.raises(ConfigurationError, match="example_input"):
        trainer(tmp_path, callback(MemoryTransport()), enable_checkpointing=False).fit(Bare(), loader())


def test_a_second_fit_goes_on_with_what_the_first_has_grown(tmp_path: Path) -> None:
    module, transport = Module(), MemoryTransport()
    first = callback(transport)
    trainer(tmp_path, first, Decide(transport, {3: "net.0"}), enable_checkpointing=False).fit(module, loader())
    assert first.handle is not None
    second, transport = callback(MemoryTransport()), MemoryTransport()
    trainer(tmp_path, second, enable_checkpointing=False).fit(module, loader())
    assert second.handle is not None
    assert second.handle.stats.kernel_parameters == first.handle.stats.kernel_parameters > 0
    assert (second.handle.stats.step, second.handle.stats.errors) == (16, 0)


def test_a_strategy_that_shards_parameters_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=pl.strategies.FSDPStrategy())
    with pytest.raises(ConfigurationError, match="FSDPStrategy shards the parameters"):
        callback(MemoryTransport()).on_fit_start(trainer, Module())


class Manual(Module):
    """Optimizes by itself, and returns no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_a_module_without_a_loss_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, callback(MemoryTransport()), enable_checkpointing=False).fit(Manual(), loader())
    assert caplog.text.count("returns no loss") == 1
