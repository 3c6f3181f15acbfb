"""The losses, accuracies, samples and validations of a training loop since the last frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tamiyo.host._common.device import read_all
from tamiyo.host._probes.failures import Failures

Scalar = Tensor | float
"""A number: Python's, numpy's, or a tensor with one element on any device. The mean counts if there are several."""
Validation = Scalar | tuple[Scalar, Scalar] | Mapping[str, Scalar]
"""A loss in nats, a (loss, accuracy) pair, or a mapping with "loss" and perhaps "accuracy"."""

DIVERGED_LOSS = 1e6
"""Replaces a loss that is not finite: above any real cross-entropy, so that a diverged run shows as such."""


class StepMetrics:
    """Collects values without waiting for the device; `take` reads them all at once and starts over.

    A value that is no number counts as missing, and as a failure.
    """

    def __init__(self, failures: Failures | None = None) -> None:
        self._failures = failures or Failures()
        self._losses: list[Tensor | float] = []
        self._accuracies: list[Tensor | float] = []
        self._samples: int | None = None
        self._validation: tuple[float | None, float | None] = (None, None)
        # The final frame of a run without any step needs a finite loss.
        self._last_loss = 0.0

    def add(self, loss: Scalar | None, accuracy: Scalar | None, samples: float | None) -> None:
        """Add one step's loss (nats), accuracy (0..1) and number of samples; tensors are kept, not read."""
        try:  # as `isolated` does, which costs a microsecond at each step
            self._losses.append(_number(loss))
        except Exception as error:
            self._failures.record("loss", error)
        if accuracy is not None:
            with self._failures.isolated("accuracy"):
                self._accuracies.append(_number(accuracy))
        if samples is not None:
            with self._failures.isolated("number of samples"):
                self._samples = (self._samples or 0) + max(0, int(float(samples)))

    def validated(self, result: Validation) -> None:
        """Record a validation; a loss that is not finite, or an accuracy outside 0..1, counts as missing."""
        loss = accuracy = None
        with self._failures.isolated("validation"):
            if isinstance(result, Mapping):
                given = result.get("loss"), result.get("accuracy")
            else:
                given = (result[0], result[1]) if isinstance(result, tuple) else (result, None)
            loss, accuracy = (None if value is None else mean([_number(value)]) for value in given)
        self._validation = (
            loss if loss is not None and math.isfinite(loss) else None,
            accuracy if accuracy is not None and 0 <= accuracy <= 1 else None,
        )

    def take(self, *, samples: float, steps: int, seconds: float) -> dict[str, Any]:
        """Return losses, accuracies, throughput and step time as fields of ModelPerformance, and start over.

        Args:
            samples: Samples per step, used if the loop did not pass any.
            steps: Steps since the last call.
            seconds: Training time since the last call.
        """
        losses, self._losses = self._losses, []
        accuracies, self._accuracies = self._accuracies, []
        if losses:
            with self._failures.isolated("loss"):
                loss = mean(losses)
                self._last_loss = loss if math.isfinite(loss) else DIVERGED_LOSS
        accuracy: float | None = None
        if accuracies:
            with self._failures.isolated("accuracy"):
                found = mean(accuracies)
                accuracy = min(max(found, 0.0), 1.0) if math.isfinite(found) else None
        trained = self._samples if self._samples is not None else samples * steps
        fields = {
            "train_loss": self._last_loss,
            "train_accuracy": accuracy,
            "validation_loss": self._validation[0],
            "validation_accuracy": self._validation[1],
            "throughput": trained / seconds if seconds > 0 else 0.0,
            "step_time_ms": seconds / steps * 1e3 if steps and seconds > 0 else 0.0,
        }
        self.clear()
        return fields

    def clear(self) -> None:
        """Forget the values so far."""
        self._losses, self._accuracies = [], []
        self._samples = None
        self._validation = (None, None)


def mean(values: Sequence[Tensor | float]) -> float:
    """Return the mean of one or more scalars, with one transfer from each device."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    return (sum(read_all(tensors)) + sum(v for v in values if not isinstance(v, Tensor))) / len(values)


def _number(value: object) -> Tensor | float:
    """Return a loop's value as a one-element tensor of its own, or a number. Raises TypeError if it is neither."""
    if isinstance(value, Tensor):
        if value.is_cpu and value.numel() == 1:
            return float(value.item())  # there is no device to wait for, and this is cheaper than a copy
        if value.numel() == 0:
            raise TypeError("expected a number, got an empty tensor")
        # A copy, because the loop may write the next step's value to the same memory, as a CUDA graph does.
        kept = value.detach()
        return kept.clone() if kept.numel() == 1 else kept.float().mean()
    if isinstance(value, float | int):
        return float(value)
    if isinstance(value, str | bytes):  # which `float` would parse
        raise TypeError(f"expected a number, got {value!r}")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        array = np.asarray(float(value))  # type: ignore[arg-type]
    if not array.size:
        raise TypeError(f"expected a number, got {value!r}")
    return float(array.mean())
