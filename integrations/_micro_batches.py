"""Values of the micro-batches of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tamiyo.host import Handle

Scalar = Tensor | float


class MicroBatches:
    """Collects losses and accuracies until the optimizer has stepped; nothing here waits for the device."""

    def __init__(self) -> None:
        """Start without any."""
        self._losses: list[Scalar] = []
        self._accuracies: list[Scalar] = []

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, loss: Scalar, accuracy: Scalar | None = None) -> None:
        """Add a micro-batch.

        Args:
            loss: Its mean loss, nats.
            accuracy: Its accuracy, 0..1, if known.
        """
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if accuracy is not None:
            self._accuracies.append(accuracy.detach() if isinstance(accuracy, Tensor) else accuracy)

    def complete(self, handle: Handle) -> None:
        """Complete a step of the run with the means, and start over."""
        handle.step(loss=_mean(self._losses), accuracy=_mean(self._accuracies) if self._accuracies else None)
        self._losses.clear()
        self._accuracies.clear()


def _mean(values: Sequence[Scalar]) -> Scalar:
    """Return the mean, on the device of the values."""
    if len(values) == 1:
        return values[0]
    device = next((value.device for value in values if isinstance(value, Tensor)), None)
    return torch.stack([torch.as_tensor(value, device=device).float().reshape(()) for value in values]).mean()
