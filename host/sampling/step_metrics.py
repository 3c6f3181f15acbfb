"""The losses, accuracies, samples and validations of a training loop since the last frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tamiyo.host.common.device import read_all

Scalar = Tensor | float
Validation = Scalar | tuple[Scalar, Scalar] | Mapping[str, Scalar]
"""A loss in nats, a (loss, accuracy) pair, or a mapping with "loss" and perhaps "accuracy"."""

DIVERGED_LOSS = 1e6
"""Replaces a loss that is not finite: above any real cross-entropy, so that a diverged run shows as such."""


class StepMetrics:
    """Collects values without waiting for the device; `take` reads them all at once and starts over."""

    def __init__(self) -> None:
        self._losses: list[Scalar] = []
        self._accuracies: list[Scalar] = []
        self._samples: int | None = None
        self._validation: tuple[float | None, float | None] = (None, None)
        # The final frame of a run without any step needs a finite loss.
        self._last_loss = 0.0

    def add(self, loss: Scalar, accuracy: Scalar | None, samples: int | None) -> None:
        """Add one step's loss (nats), accuracy (0..1) and number of samples; tensors are kept, not read."""
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if accuracy is not None:
            self._accuracies.append(accuracy.detach() if isinstance(accuracy, Tensor) else accuracy)
        if samples is not None:
            self._samples = (self._samples or 0) + samples

    def validated(self, result: Validation) -> None:
        """Record a validation; a loss that is not finite, or an accuracy outside 0..1, counts as missing."""
        if isinstance(result, Mapping):
            pair = (result.get("loss"), result.get("accuracy"))
        else:
            pair = (result[0], result[1]) if isinstance(result, tuple) else (result, None)
        loss, accuracy = (None if value is None else float(value) for value in pair)
        self._validation = (
            loss if loss is not None and math.isfinite(loss) else None,
            accuracy if accuracy is not None and 0 <= accuracy <= 1 else None,
        )

    def take(self, *, batch: int, steps: int, seconds: float) -> dict[str, Any]:
        """Return losses, accuracies, throughput and step time as fields of ModelPerformance, and start over.

        Args:
            batch: Samples per step, used if the loop did not pass any.
            steps: Steps since the last call.
            seconds: Training time since the last call.
        """
        if self._losses:
            loss = mean(self._losses)
            self._last_loss = loss if math.isfinite(loss) else DIVERGED_LOSS
        samples = self._samples if self._samples is not None else batch * steps
        fields = {
            "train_loss": self._last_loss,
            "train_accuracy": min(max(mean(self._accuracies), 0.0), 1.0) if self._accuracies else None,
            "validation_loss": self._validation[0],
            "validation_accuracy": self._validation[1],
            "throughput": samples / seconds if seconds > 0 else 0.0,
            "step_time_ms": seconds / steps * 1e3 if steps and seconds > 0 else 0.0,
        }
        self.clear()
        return fields

    def clear(self) -> None:
        """Forget the values so far."""
        self._losses.clear()
        self._accuracies.clear()
        self._samples = None
        self._validation = (None, None)


def mean(values: Sequence[Scalar]) -> float:
    """Return the mean of one or more scalars, with one transfer from the device."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    return (sum(read_all(tensors)) + sum(float(v) for v in values if not isinstance(v, Tensor))) / len(values)
