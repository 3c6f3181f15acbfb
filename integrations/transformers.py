"""A callback for the Trainer of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from tamiyo.host import Handle, attach
from tamiyo.integrations._carried_state import CarriedState
from tamiyo.schemas.errors import ConfigurationError

try:
    from accelerate.utils import send_to_device
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("this needs transformers: pip install 'esper-tamiyo[transformers]'") from error

__all__ = ["TamiyoCallback"]


class TamiyoCallback(TrainerCallback):  # type: ignore[misc]
    """Attaches the model of a Hugging Face Trainer.

    The Trainer passes its callbacks neither the loss of a step nor an error, and restores the optimizer before it calls
    one. So this callback takes the Trainer, and follows its `train`, `training_step` and `evaluate`. It passes the mean
    loss of each optimizer step and the results of evaluations; it puts the run's state into the Trainer's checkpoints
    and restores it from them; it closes the run at the end, after an exception, and on Ctrl-C.

    Attributes:
        handle: The attached run.

    Example:
        ```python
        trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
        callback = TamiyoCallback(trainer, example_input={"input_ids": torch.zeros(2, 16, dtype=torch.long)})
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=False)
        ```
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        example_input: Any,
        on_attach: Callable[[Handle], object] | None = None,
        **options: Any,
    ) -> None:
        """Create the Trainer's optimizer, and attach. Call `trainer.add_callback` with the result.

        Args:
            trainer: Before its `train`, which can be called once.
            example_input: As `attach` takes it; a mapping of keyword arguments of the model's forward, for example.
            on_attach: Called with the handle, for loggers and `handle.on_event`.
            options: What else `attach` takes, such as `loss_fn`, `held_out`, `protected`, `settings`, `transport`.

        Raises:
            ConfigurationError: The Trainer makes its optimizer later than that (FSDP, DeepSpeed), or `attach` refuses
                the model or the optimizer.
        """
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigurationError("FSDP and DeepSpeed shard the parameters: kernels cannot grow in them")
        model, optimizer = trainer.model, trainer.create_optimizer()
        assert model is not None
        self.handle = attach(
            model,
            optimizer,
            example_input=send_to_device(example_input, trainer.args.device),
            **options,
        )
        self._trainer = trainer
        self._loss: Any = None
        CarriedState(self.handle, optimizer)
        for name, follow in (
            ("train", self._train),
            ("training_step", self._training_step),
            ("evaluate", self._evaluate),
        ):
            method = getattr(trainer, name)
            setattr(trainer, name, wraps(method)(_bound(follow, method)))
        if on_attach is not None:
            on_attach(self.handle)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Make sure that the Trainer trains what was attached.

        Raises:
            ConfigurationError: It has made another model, as for a hyper-parameter search.
        """
        if self._trainer.model is not self.handle.model:
            raise ConfigurationError(
                "the Trainer has made a new model since it was attached: attach one for each trial"
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Pass the epoch."""
        self.handle.epoch = int(state.epoch or 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Complete a step of the run: the optimizer has stepped."""
        loss, self._loss = self._loss, None
        if loss is not None:
            self.handle.step(loss=loss)

    def _training_step(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        # The Trainer has divided each loss by the number of micro-batches: the sum is what it logs as the step's loss.
        loss = method(*args, **more)
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        return loss

    def _evaluate(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        with self.handle.outside():
            metrics = method(*args, **more)
        if "eval_loss" in metrics:
            result = {"loss": metrics["eval_loss"]}
            if "eval_accuracy" in metrics:
                result["accuracy"] = metrics["eval_accuracy"]
            self.handle.validate(lambda: result)
        return metrics

    def _train(self, method: Callable[..., Any], *args: Any, **more: Any) -> Any:
        with self.handle:
            return method(*args, **more)


def _bound(follow: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **more: follow(method, *args, **more)
