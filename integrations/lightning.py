"""A callback for Lightning's Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from tamiyo.host import Handle, attach
from tamiyo.integrations._carried_state import KEY, CarriedState
from tamiyo.integrations._micro_batches import MicroBatches
from tamiyo.integrations._plain_load import PlainLoad
from tamiyo.schemas.errors import ConfigurationError

try:
    import lightning.pytorch as pl
    from lightning.fabric.utilities import move_data_to_device
except ImportError as error:
    raise ImportError("this needs Lightning: pip install 'esper-tamiyo[lightning]'") from error

__all__ = ["TamiyoCallback"]

log = logging.getLogger(__name__)

_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class TamiyoCallback(pl.Callback):
    """Attaches the model of a Lightning Trainer for the duration of `fit`.

    It passes the mean loss of each optimizer step, validation results, and the epoch; it puts the run's state into the
    Trainer's checkpoints and restores it from them; it closes the run at the end, after an exception, and on Ctrl-C.

    Attributes:
        handle: The attached run; None before training starts.

    Example:
        ```python
        callback = TamiyoCallback(example_input=torch.zeros(2, 28, 28))
        trainer = lightning.Trainer(max_epochs=5, callbacks=[callback])
        trainer.fit(module, loader)
        print(callback.handle.stats)
        ```
    """

    def __init__(
        self,
        *,
        example_input: Any = None,
        submodule: str = "",
        validation_loss: str = "val_loss",
        validation_accuracy: str = "val_acc",
        on_attach: Callable[[Handle], object] | None = None,
        **options: Any,
    ) -> None:
        """Configure; nothing is attached yet.

        Args:
            example_input: As `attach` takes it. Default: `example_input_array` of the LightningModule.
            submodule: Dotted name of the part of the LightningModule to attach. Default: all of it.
            validation_loss: Name under which the module logs its validation loss, nats.
            validation_accuracy: Name under which it logs its validation accuracy, 0..1.
            on_attach: Called with the handle when training starts, for loggers and `handle.on_event`.
            options: What else `attach` takes, such as `loss_fn`, `held_out`, `protected`, `settings`, `transport`.
        """
        self.handle: Handle | None = None
        self._example_input = example_input
        self._submodule = submodule
        self._names = (validation_loss, validation_accuracy)
        self._on_attach = on_attach
        self._options = options
        self._plain_load: PlainLoad | None = None
        self._micro_batches = MicroBatches()
        self._steps = 0
        self._outside: AbstractContextManager[None] | None = None
        self._warned = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the plain model load a checkpoint of a grown one: the kernels are restored later."""
        if stage == "fit":
            self._plain_load = PlainLoad(self._model(pl_module))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Make sure that what the plain model has left out comes later.

        Raises:
            ConfigurationError: The model of the checkpoint is another one.
        """
        carried = any(KEY in state for state in checkpoint.get("optimizer_states", ()))
        if self._plain_load is not None and not carried:
            self._plain_load.require_equal_names()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach: the optimizers exist, and their states are not restored yet.

        Raises:
            ConfigurationError: There is no example input, the strategy shards the parameters, or `attach` refuses the
                model or an optimizer.
        """
        if self._plain_load is not None:
            self._plain_load.close()
        if any(kind.__name__ in _SHARDING for kind in type(trainer.strategy).__mro__):
            raise ConfigurationError(
                f"{type(trainer.strategy).__name__} shards the parameters: kernels cannot grow in them; use "
                'strategy="ddp"'
            )
        if self.handle is not None:
            self.handle.detach()  # an earlier `fit`
        example = pl_module.example_input_array if self._example_input is None else self._example_input
        if example is None:
            raise ConfigurationError("pass example_input=, or set example_input_array in the LightningModule")
        optimizers = list(trainer.optimizers)
        self.handle = attach(
            self._model(pl_module),
            optimizers[0] if len(optimizers) == 1 else optimizers,  # type: ignore[arg-type]
            example_input=move_data_to_device(example, pl_module.device),
            **self._options,
        )
        CarriedState(self.handle, optimizers[0])
        self._micro_batches = MicroBatches()
        if self._on_attach is not None:
            self._on_attach(self.handle)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start to count optimizer steps; a checkpoint has set their number."""
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pass the epoch."""
        if self.handle is not None:
            self.handle.epoch = trainer.current_epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Complete a step of the run if the optimizer has stepped."""
        if self.handle is None:
            return
        values = outputs if isinstance(outputs, Mapping) else {"loss": outputs}
        loss = values.get("loss")
        if isinstance(loss, Tensor | float):
            # Lightning has divided the loss by the number of micro-batches, if it steps the optimizer itself.
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._micro_batches.add(loss * share, values.get("accuracy"))
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        if self._micro_batches:
            self._micro_batches.complete(self.handle)
        elif not self._warned:
            self._warned = True
            log.warning("training_step returns no loss: Tamiyo cannot watch this training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the validation neither as training nor as overhead."""
        if self.handle is not None and self._outside is None and not trainer.sanity_checking:
            self._outside = self.handle.outside()
            self._outside.__enter__()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the validation's result with the next frame."""
        self._resume_clock()
        if self.handle is None or trainer.sanity_checking:
            return
        loss, accuracy = (trainer.callback_metrics.get(name) for name in self._names)
        if loss is not None:
            result = {"loss": loss} if accuracy is None else {"loss": loss, "accuracy": accuracy}
            self.handle.validate(lambda: result)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the run."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the run after an error, or Ctrl-C."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the run if nothing else has, and leave the module for another `fit`."""
        self._close()
        if self.handle is not None and stage == "fit":
            self.handle.detach()

    def _model(self, pl_module: pl.LightningModule) -> nn.Module:
        return pl_module.get_submodule(self._submodule)

    def _close(self) -> None:
        self._resume_clock()
        if self._plain_load is not None:
            self._plain_load.close()
        if self.handle is not None:
            self.handle.close()

    def _resume_clock(self) -> None:
        outside, self._outside = self._outside, None
        if outside is not None:
            outside.__exit__(None, None, None)
