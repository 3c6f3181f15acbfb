"""Tamiyo in Lightning: the network grows while `fit` runs, and a second `fit` resumes from a checkpoint.

python examples/lightning_trainer.py
"""

import logging
import tempfile
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.lightning import TamiyoCallback


class Classifier(L.LightningModule):
    """A small network; nothing in it is about Tamiyo."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 8)  # or pass example_input= to the callback
        self.net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, inputs: Tensor) -> Any:
        return self.net(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class DecideOnce(L.Callback):
    """Stands for the policy in this example: one kernel, at step 40."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 40:
            self.transport.decide("load_kernel", layer="net.0", blueprint="bottleneck")


def loader(seed: int) -> DataLoader[Any]:
    """Return points [8], and whether the product of the first two coordinates is positive."""
    points = torch.randn(1024, 8, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(points, (points[:, 0] * points[:, 1] > 0).long()), batch_size=32)


def main() -> None:
    """Train two epochs, then resume for two more."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = tempfile.mkdtemp()

    def fit(epochs: int, resume: str | None) -> TamiyoCallback:
        transport = MemoryTransport()  # leave transport= out to connect to Kafka
        tamiyo = TamiyoCallback(transport=transport, on_attach=lambda handle: handle.on_event(print))
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[tamiyo, DecideOnce(transport), ModelCheckpoint(folder, save_last=True)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(), loader(seed=0), loader(seed=1), ckpt_path=resume)
        return tamiyo

    for epochs, resume in ((2, None), (4, f"{folder}/last.ckpt")):
        tamiyo = fit(epochs, resume)
        assert tamiyo.handle is not None
        stats, frames = tamiyo.handle.stats, tamiyo.handle.history.frames
        validated = [frame.validation_loss for frame in frames if frame.validation_loss is not None]
        print(f"step {stats.step}: held-out loss {validated[-1]:.3f}, {stats.kernel_parameters} parameters in kernels")


if __name__ == "__main__":
    main()
