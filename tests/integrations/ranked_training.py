"""A training in two processes with one of the frameworks: `python -m tests.integrations.ranked_training NAME FOLDER`.

Each process trains to the end, checkpoints at SAVED, resumes from there with fresh objects, and writes what became of
it to FOLDER. `test_two_processes` starts it as users start theirs.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host import Handle, HostSettings
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.topics import MODEL_PERFORMANCE, OUTCOMES, TOPOLOGY
from tests.support.runs import data, network
from tests.support.runs import settings as quick

GROW_BEFORE, SAVED, STEPS, UNLOAD_BEFORE = 3, 8, 16, 11
"""Steps, from 0."""


def settings() -> HostSettings:
    return quick(exchange_interval=2, ramp_steps=2)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(128)), batch_size=8)


def decide(transport: MemoryTransport, step: int, layer: str) -> None:
    """Make the decisions of a step at rank 0."""
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) != 0:
        return
    if step == GROW_BEFORE:
        transport.decide("load_kernel", layer=layer, blueprint="parallel_expansion")
    if step == UNLOAD_BEFORE:
        transport.decide("unload_kernel", layer=layer)


def report(handle: Handle, transport: MemoryTransport) -> dict[str, Any]:
    return {
        "run": handle.run_id,
        "step": handle.stats.step,
        "errors": handle.stats.errors,
        "kernel_parameters": handle.stats.kernel_parameters,
        "executed": [(o.step, o.kernel_id) for o in transport.records(OUTCOMES.name) if o.status == "executed"],
        "frames": len(transport.records(MODEL_PERFORMANCE.name)),
        "layers": list(handle.layers),
        "topologies": len(transport.records(TOPOLOGY.name)),
        "closed": transport.closed,
        "parameters": {name: value.tolist() for name, value in handle.model.named_parameters()},
    }


def lightning(folder: Path, resume: bool) -> dict[str, Any]:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from tamiyo.integrations.lightning import TamiyoCallback

    class Module(pl.LightningModule):
        example_input_array = torch.zeros(2, 2, 8)

        def __init__(self) -> None:
            super().__init__()
            self.net = network(7 if resume else 0)

        def forward(self, inputs: torch.Tensor) -> Any:
            return self.net(inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    class Decide(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            decide(transport, trainer.global_step, "net.0")

    transport = MemoryTransport()
    callback = TamiyoCallback(transport=transport, settings=settings())
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_epochs=1)
    trainer = pl.Trainer(
        accelerator="cpu", strategy="ddp", devices=2, logger=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, callbacks=[callback, Decide(), save], default_root_dir=folder,
    )  # fmt: skip
    saved = str(folder / f"step={SAVED}.ckpt") if resume else None
    trainer.fit(Module(), loader(), ckpt_path=saved)
    assert callback.handle is not None
    return report(callback.handle, transport)


def accelerate(folder: Path, resume: bool) -> dict[str, Any]:
    from accelerate import Accelerator

    from tamiyo.integrations.accelerate import attach_accelerated

    accelerator = Accelerator(cpu=True)
    plain = network(7 if resume else 0)
    prepared: Any = accelerator.prepare(plain, torch.optim.Adam(plain.parameters(), lr=0.01), loader())
    model, optimizer, batches = prepared
    transport = MemoryTransport()
    with attach_accelerated(
        accelerator, model, optimizer, example_input=torch.zeros(2, 2, 8), transport=transport, settings=settings()
    ) as run:
        if resume:
            accelerator.load_state(str(folder / "saved"))
        for _ in range(1 if resume else 2):
            for inputs, labels in batches:
                decide(transport, run.handle.stats.step, "0")
                loss = F.cross_entropy(model(inputs), labels)
                accelerator.backward(loss)
                optimizer.step()
                run.step(loss)
                optimizer.zero_grad()
                if run.handle.stats.step == SAVED and not resume:
                    accelerator.save_state(str(folder / "saved"))
    return report(run.handle, transport)


def transformers(folder: Path, resume: bool) -> dict[str, Any]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from tamiyo.integrations.transformers import TamiyoCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(7 if resume else 0)

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
            logits = self.net(inputs)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Decide(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            decide(transport, state.global_step, "net.0")

    inputs, labels = data(128)
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, max_steps=STEPS, save_steps=SAVED, report_to=[], disable_tqdm=True,
        use_cpu=True, learning_rate=0.01, logging_steps=4, ddp_backend="gloo", ddp_find_unused_parameters=False,
    )  # fmt: skip
    # With several processes the Trainer loads an optimizer's state to the device "cpu:0", which torch cannot.
    vars(arguments)["_setup_devices"] = torch.device("cpu")
    rows = [{"inputs": a, "labels": b} for a, b in zip(inputs, labels, strict=True)]
    trainer = Trainer(model=Model(), args=arguments, train_dataset=rows)
    transport = MemoryTransport()
    callback = TamiyoCallback(
        trainer, example_input={"inputs": torch.zeros(2, 2, 8)}, transport=transport, settings=settings()
    )
    trainer.add_callback(callback)
    trainer.add_callback(Decide())
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    return report(callback.handle, transport)


FRAMEWORKS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "lightning": lightning,
    "accelerate": accelerate,
    "transformers": transformers,
}


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    train = FRAMEWORKS[name]
    reports = {"whole": train(folder, False), "resumed": train(folder, True)}
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(reports))
    gc.collect()  # a wrapped model holds its process group; one freed as the interpreter ends aborts in its threads
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
