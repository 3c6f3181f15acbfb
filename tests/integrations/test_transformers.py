"""The Trainer of Hugging Face: growth while it trains, checkpoint and resume, errors, and several micro-batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from tamiyo.host import HostSettings
from tamiyo.host.testing import MemoryTransport
from tamiyo.integrations.transformers import TamiyoCallback
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE

LAYER = "bert.encoder.layer.0.intermediate.dense"
EXAMPLE = {"input_ids": torch.ones(2, 6, dtype=torch.long)}


class Sentences(Dataset[dict[str, Tensor]]):
    """Random tokens, and whether the first is in the upper half of the vocabulary."""

    def __init__(self, samples: int = 64) -> None:
        self.tokens = torch.randint(32, (samples, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": (self.tokens[index, 0] >= 16).long()}


def model(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=32, max_position_embeddings=8, **sizes))


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


class Recorded(Trainer):
    """Keeps the loss of every micro-batch."""

    def compute_loss(self, *args: Any, **more: Any) -> Any:
        result = super().compute_loss(*args, **more)
        loss = result[0] if isinstance(result, tuple) else result
        if loss.requires_grad:
            self.losses = [*getattr(self, "losses", []), loss.item()]
        return result


class Decide(TrainerCallback):
    """Decides to load a kernel, or raises, before a step."""

    def __init__(
        self, transport: MemoryTransport, at: int | None, fail_at: int | None, error: BaseException | None
    ) -> None:
        self.transport, self.at, self.fail_at, self.error = transport, at, fail_at, error

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == self.at:
            self.transport.decide("load_kernel", layer=LAYER, blueprint="parallel_expansion")
        if self.error is not None and state.global_step == self.fail_at:
            raise self.error


def made(
    folder: Path,
    *,
    at: int | None = None,
    fail_at: int | None = None,
    error: BaseException | None = None,
    seed: int = 0,
    **more: Any,
) -> tuple[Recorded, TamiyoCallback, MemoryTransport]:
    options: dict[str, Any] = {
        "per_device_train_batch_size": 8, "max_steps": 12, "save_steps": 6, "logging_steps": 2, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "learning_rate": 0.01,
    }  # fmt: skip
    trainer = Recorded(
        model=model(seed),
        args=TrainingArguments(str(folder), **options | more),
        train_dataset=Sentences(),
        eval_dataset=Sentences(16),
        compute_metrics=accuracy,
    )
    transport = MemoryTransport()
    settings = HostSettings(
        sample_interval=2, cooldown_steps=0, ramp_steps=4, parameter_budget=10_000, overhead_budget=1e6
    )
    callback = TamiyoCallback(trainer, example_input=EXAMPLE, transport=transport, settings=settings, run_id="run-1")
    trainer.add_callback(callback)
    trainer.add_callback(Decide(transport, at, fail_at, error))
    return trainer, callback, transport


def test_the_network_grows_while_it_trains(tmp_path: Path) -> None:
    trainer, callback, transport = made(tmp_path, at=3, eval_strategy="steps", eval_steps=4)
    trainer.train()
    stats = callback.handle.stats
    assert (stats.step, stats.executed, stats.errors) == (12, 1, 0)
    assert stats.kernel_parameters > 0
    assert transport.closed
    frames = transport.records(MODEL_PERFORMANCE.name)
    assert frames[0].train_loss == pytest.approx(sum(trainer.losses[:2]) / 2)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [frame.validation_loss for frame in frames if frame.validation_loss is not None] == [
        entry["eval_loss"] for entry in evaluations
    ]
    assert evaluations[0]["eval_accuracy"] in [frame.validation_accuracy for frame in frames]
    assert [frame.epoch for frame in frames] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("normalized", [False, True])
def test_a_step_is_a_step_of_the_optimizer(tmp_path: Path, normalized: bool) -> None:
    """The loss is the one that the Trainer logs.

    If a model's forward takes further keywords, the Trainer leaves it to the model to divide its loss by the number of
    micro-batches, and this one does not.
    """
    trainer, callback, transport = made(tmp_path, gradient_accumulation_steps=4, max_steps=4)
    trainer.model_accepts_loss_kwargs = not normalized
    trainer.train()
    assert callback.handle.stats.step == 4
    frame = transport.records(MODEL_PERFORMANCE.name)[0]
    expected = sum(trainer.losses[:8]) / (8 if normalized else 2)
    assert (frame.step, frame.train_loss) == (2, pytest.approx(expected, rel=1e-5))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_a_resumed_training_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, grown, _ = made(tmp_path / "whole", at=3)
    whole.train()
    resumed, callback, _ = made(tmp_path / "resumed", seed=7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert resumed.losses == whole.losses[6:]
    assert callback.handle.stats.step == 12
    assert callback.handle.stats.kernel_parameters == grown.handle.stats.kernel_parameters > 0
    whole.model.eval()
    resumed.model.eval()
    assert torch.equal(resumed.model(**EXAMPLE).logits, whole.model(**EXAMPLE).logits)
    ours, theirs = (each.optimizer.param_groups for each in (resumed, whole))
    assert [group["lr"] for group in ours] == [group["lr"] for group in theirs]


def test_a_resumed_training_grows_further(tmp_path: Path) -> None:
    made(tmp_path, at=3, max_steps=6)[0].train()
    trainer, callback, _ = made(tmp_path, at=8, seed=7)
    trainer.train(resume_from_checkpoint=True)
    assert callback.handle.stats.executed == 1
    kernels = [event for event in callback.handle.history.events if event.kind == "kernel_added"]
    assert [(event.layer_id, event.seed_id) for event in kernels] == [(LAYER, 0), (LAYER, 1)]
    assert kernels[-1].step == 9


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    """The checkpoint is of a network with fewer kernels than the one that it is loaded into."""
    trainer, callback, _ = made(
        tmp_path, at=8, eval_strategy="steps", eval_steps=6, load_best_model_at_end=True, learning_rate=0.3
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    fresh, _, _ = made(tmp_path / "fresh", seed=7)
    fresh._load_from_checkpoint(best)
    trainer.model.eval()
    fresh.model.eval()
    assert torch.equal(trainer.model(**EXAMPLE).logits, fresh.model(**EXAMPLE).logits)
    assert callback.handle.stats.executed == 1


@pytest.mark.parametrize("error", [ValueError("bad batch"), KeyboardInterrupt()])
def test_the_run_is_closed_after_an_error_and_on_ctrl_c(tmp_path: Path, error: BaseException) -> None:
    trainer, callback, transport = made(tmp_path, fail_at=3, error=error)
    with pytest.raises(type(error)):
        trainer.train()
    assert transport.closed
    assert callback.handle.stats.step == 3


def test_a_new_model_of_the_trainer_is_refused(tmp_path: Path) -> None:
    trainer, _, _ = made(tmp_path)
    trainer.model = trainer.model_wrapped = model(seed=7)
    with pytest.raises(ConfigurationError, match="new model"):
        trainer.train()
