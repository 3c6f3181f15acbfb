"""Attach the model of a training loop that uses Hugging Face accelerate."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from tamiyo.host import Handle, attach
from tamiyo.integrations._carried_state import CarriedState
from tamiyo.integrations._micro_batches import MicroBatches, Scalar
from tamiyo.schemas.errors import ConfigurationError

try:
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, send_to_device
except ImportError as error:
    raise ImportError("this needs accelerate: pip install 'esper-tamiyo[accelerate]'") from error

__all__ = ["AcceleratedRun", "attach_accelerated"]

_SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class AcceleratedRun:
    """An attached run in a loop of accelerate, made by `attach_accelerated`.

    Used as a context manager around the loop, it closes the run at its end, after an exception, and on Ctrl-C.

    Attributes:
        handle: The attached run.
    """

    def __init__(self, accelerator: Accelerator, handle: Handle) -> None:
        """Count the steps of a run."""
        self.handle = handle
        self._accelerator = accelerator
        self._micro_batches = MicroBatches()

    def step(self, loss: Scalar, accuracy: Scalar | None = None) -> None:
        """Follow `optimizer.step()`, for every micro-batch; the run's step is complete when the optimizer has stepped.

        Args:
            loss: Mean loss of the micro-batch, nats, as given to `accelerator.backward`.
            accuracy: Its accuracy, 0..1, if known.
        """
        self._micro_batches.add(loss, accuracy)
        if self._accelerator.sync_gradients:
            self._micro_batches.complete(self.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.handle.close()


def attach_accelerated(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    example_input: Any,
    **options: Any,
) -> AcceleratedRun:
    """Attach a model and an optimizer that accelerate has prepared.

    `accelerator.save_state` saves the run's state too, and `accelerator.load_state` restores it, kernels included.

    Args:
        accelerator: The program's.
        model: The result of `accelerator.prepare`.
        optimizer: The result of `accelerator.prepare`.
        example_input: As `attach` takes it; moved to the accelerator's device.
        options: What else `attach` takes, such as `loss_fn`, `held_out`, `protected`, `settings`, `transport`.

    Returns:
        The run: call its `step` after `optimizer.step()`.

    Raises:
        ConfigurationError: accelerate shards the parameters (FSDP, DeepSpeed, Megatron), or `attach` refuses the model
            or the optimizer.

    Example:
        ```python
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        with attach_accelerated(accelerator, model, optimizer, example_input=inputs) as run:
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    loss = F.cross_entropy(model(inputs), targets)
                    accelerator.backward(loss)
                    optimizer.step()
                    run.step(loss)
                    optimizer.zero_grad()
        ```
    """
    if accelerator.distributed_type in _SHARDING:
        raise ConfigurationError(
            f"{accelerator.distributed_type.value} shards the parameters: kernels cannot grow in them; use "
            "DistributedDataParallel"
        )
    inner = getattr(optimizer, "optimizer", optimizer)  # AcceleratedOptimizer has the torch optimizer inside
    handle = attach(
        accelerator.unwrap_model(model),
        inner,
        example_input=send_to_device(example_input, accelerator.device),
        **options,
    )
    CarriedState(handle, inner)
    return AcceleratedRun(accelerator, handle)
