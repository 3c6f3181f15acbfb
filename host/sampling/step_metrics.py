"""What a training loop has told since the last frame: losses, accuracies, samples, a validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tamiyo.host.common.device import read_all

Scalar = Tensor | float
Validation = Scalar | tuple[Scalar, Scalar] | Mapping[str, Scalar]
"""A loss in nats, a (loss, accuracy) pair, or a mapping with "loss" and perhaps "accuracy"."""

# What stands for a loss that is not finite: beyond any real cross-entropy, so that a run gone astray shows as such.
DIVERGED_LOSS = 1e6


class StepMetrics:
    """Collects without waiting for the device; `take` reads everything at once and begins the next span."""

    def __init__(self) -> None:
        self._losses: list[Scalar] = []
        self._accuracies: list[Scalar] = []
        self._samples: int | None = None
        self._validation: tuple[float | None, float | None] = (None, None)
        # A run that ends before its first step has no loss, but its final frame has to say something.
        self._last_loss = 0.0

    def add(self, loss: Scalar, accuracy: Scalar | None, samples: int | None) -> None:
        """One step's."""
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if accuracy is not None:
            self._accuracies.append(accuracy.detach() if isinstance(accuracy, Tensor) else accuracy)
        if samples is not None:
            self._samples = (self._samples or 0) + samples

    def validated(self, result: Validation) -> None:
        """What the user's validation gave; values that are not finite, or no ratio, were not measured."""
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
        """Losses, accuracies, throughput and step time as ModelPerformance's fields.

        batch: samples a step where the loop did not tell; steps and seconds: of training, since the last frame.
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
        self._losses.clear()
        self._accuracies.clear()
        self._samples = None
        self._validation = (None, None)
        return fields


def mean(values: Sequence[Scalar]) -> float:
    """Mean of one or more scalars; one transfer from the device."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    return (sum(read_all(tensors)) + sum(float(v) for v in values if not isinstance(v, Tensor))) / len(values)
