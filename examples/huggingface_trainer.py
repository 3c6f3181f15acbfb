"""Tamiyo in the Trainer of Hugging Face: a tiny BERT grows while it trains, and resumes from a checkpoint.

python examples/huggingface_trainer.py
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.transformers import TamiyoCallback

LAYER = "bert.encoder.layer.0.intermediate.dense"


class Sentences(Dataset[dict[str, Tensor]]):
    """Random tokens, and whether the first two are in the same half of the vocabulary."""

    def __init__(self, seed: int) -> None:
        self.tokens = torch.randint(32, (512, 6), generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        upper = self.tokens[index] >= 16
        return {"input_ids": self.tokens[index], "labels": (upper[0] == upper[1]).long()}


class DecideOnce(TrainerCallback):  # type: ignore[misc]
    """Stands for the policy in this example: one kernel, at step 40."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 40:
            self.transport.decide("load_kernel", layer=LAYER, blueprint="parallel_expansion")


def make(folder: str, epochs: int) -> tuple[Trainer, TamiyoCallback]:
    """Return a Trainer with a small network, as every process of the run makes it."""
    config = BertConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            eval_strategy="epoch",
            save_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Sentences(seed=0),
        eval_dataset=Sentences(seed=1),
    )
    transport = MemoryTransport()  # leave transport= out to connect to Kafka
    tamiyo = TamiyoCallback(
        trainer,
        example_input={"input_ids": torch.zeros(2, 6, dtype=torch.long)},
        transport=transport,
        on_attach=lambda handle: handle.on_event(print),
    )
    trainer.add_callback(tamiyo)
    trainer.add_callback(DecideOnce(transport))
    return trainer, tamiyo


def main() -> None:
    """Train two epochs, then resume for two more."""
    folder = tempfile.mkdtemp()
    for epochs, resume in ((2, False), (4, True)):
        trainer, tamiyo = make(folder, epochs)
        trainer.train(resume_from_checkpoint=resume)
        stats, loss = tamiyo.handle.stats, trainer.evaluate()["eval_loss"]
        print(f"step {stats.step}: held-out loss {loss:.3f}, {stats.kernel_parameters} parameters in kernels")


if __name__ == "__main__":
    main()
