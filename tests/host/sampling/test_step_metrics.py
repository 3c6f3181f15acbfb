"""Metrics of a training loop between two frames."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tamiyo.host._common.device import memory_bytes, read_all
from tamiyo.host._probes.failures import Failures
from tamiyo.host._sampling.step_metrics import DIVERGED_LOSS, StepMetrics


def test_means_are_over_the_steps_since_the_last_frame() -> None:
    metrics = StepMetrics()
    metrics.add(torch.tensor(1.0, requires_grad=True), torch.tensor(0.5), 3)
    metrics.add(2.0, None, 5)
    metrics.add(torch.tensor(6.0), 1.0, None)
    fields = metrics.take(samples=100, steps=3, seconds=2.0)
    assert fields["train_loss"] == pytest.approx(3.0)
    assert fields["train_accuracy"] == pytest.approx(0.75)
    assert fields["throughput"] == pytest.approx(4.0)
    assert fields["step_time_ms"] == pytest.approx(2000 / 3)


def test_samples_are_counted_by_the_batch_by_default() -> None:
    metrics = StepMetrics()
    metrics.add(1.0, None, None)
    assert metrics.take(samples=64, steps=10, seconds=2.0)["throughput"] == 320.0


def test_missing_values_are_null_and_the_last_loss_remains() -> None:
    metrics = StepMetrics()
    metrics.add(2.5, None, None)
    metrics.take(samples=1, steps=1, seconds=1.0)
    fields = metrics.take(samples=1, steps=0, seconds=0.0)
    assert fields["train_loss"] == 2.5
    assert (fields["train_accuracy"], fields["validation_loss"], fields["validation_accuracy"]) == (None, None, None)
    assert (fields["throughput"], fields["step_time_ms"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("result", "loss", "accuracy"),
    [
        (0.5, 0.5, None),
        (torch.tensor(0.5), 0.5, None),
        ((0.5, torch.tensor(0.25)), 0.5, 0.25),
        ({"loss": 0.5, "accuracy": 0.25, "f1": 9.0}, 0.5, 0.25),
        ({"accuracy": 0.25}, None, 0.25),
        ((float("nan"), 25.0), None, None),
    ],
)
def test_a_validation_is_published_once(result: object, loss: float | None, accuracy: float | None) -> None:
    metrics = StepMetrics()
    metrics.validated(result)  # type: ignore[arg-type]
    fields = metrics.take(samples=1, steps=1, seconds=1.0)
    assert (fields["validation_loss"], fields["validation_accuracy"]) == (loss, accuracy)
    assert metrics.take(samples=1, steps=1, seconds=1.0)["validation_loss"] is None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), torch.tensor(float("-inf"))])
def test_a_loss_that_is_not_finite_shows_as_diverged(loss: float) -> None:
    metrics = StepMetrics()
    metrics.add(1.0, None, None)
    metrics.add(loss, None, None)
    assert metrics.take(samples=1, steps=2, seconds=1.0)["train_loss"] == DIVERGED_LOSS


def test_memory_is_that_of_parameters_gradients_and_optimiser_state() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    assert memory_bytes(model, [optimizer]) == 8 * 4
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    # gradients and two moments as large again, and two step counters of one float32
    assert memory_bytes(model, [optimizer]) == 8 * 4 * 4 + 2 * 4


class Wrapped:
    def __float__(self) -> float:
        return 3.0


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (3, 3.0),
        (True, 1.0),
        (np.float32(3), 3.0),
        (np.float64(3), 3.0),
        (np.int64(3), 3.0),
        (np.array([3.0]), 3.0),
        (np.array([2.0, 4.0]), 3.0),
        ([2.0, 4.0], 3.0),
        (Fraction(3), 3.0),
        (Decimal(3), 3.0),
        (Wrapped(), 3.0),
        (torch.tensor([3.0]), 3.0),
        (torch.tensor([[3.0]], requires_grad=True), 3.0),
        (torch.tensor([2.0, 4.0], requires_grad=True), 3.0),
        (torch.tensor(3), 3.0),
        (torch.tensor(3.0, dtype=torch.bfloat16), 3.0),
        (torch.tensor(float("nan")), DIVERGED_LOSS),
        (np.float32("inf"), DIVERGED_LOSS),
    ],
)
def test_a_loss_may_be_any_number_and_counts_by_its_mean(loss: Any, found: float) -> None:
    failures = Failures()
    metrics = StepMetrics(failures)
    metrics.add(loss, None, None)
    metrics.validated(loss)
    fields = metrics.take(samples=1, steps=1, seconds=1.0)
    assert (fields["train_loss"], fields["validation_loss"]) == (found, None if found == DIVERGED_LOSS else found)
    assert failures.count == 0


@pytest.mark.parametrize("loss", [None, "three", b"3", object(), torch.empty(0), [], {"loss": 3.0}, 3 + 4j])
def test_what_is_no_number_counts_as_missing_and_is_logged_once(loss: Any, caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    metrics = StepMetrics(failures)
    metrics.add(2.5, None, None)
    for _ in range(3):
        metrics.add(loss, None, None)
    assert metrics.take(samples=1, steps=4, seconds=1.0)["train_loss"] == 2.5
    assert failures.count == len(caplog.records) * 3 == 3
    metrics.add(1.0, "high", "many")  # type: ignore[arg-type]
    metrics.validated(("low", 0.5))  # type: ignore[arg-type]
    fields = metrics.take(samples=2, steps=1, seconds=1.0)
    assert (fields["train_loss"], fields["train_accuracy"], fields["throughput"]) == (1.0, None, 2.0)
    assert (fields["validation_loss"], fields["validation_accuracy"]) == (None, None)


def test_an_accuracy_that_is_not_finite_is_missing() -> None:
    metrics = StepMetrics()
    metrics.add(1.0, torch.tensor(float("nan")), None)
    assert metrics.take(samples=1, steps=1, seconds=1.0)["train_accuracy"] is None


def test_a_loss_whose_memory_the_loop_uses_again_is_the_steps_own() -> None:
    metrics = StepMetrics()
    loss = torch.zeros(())
    for value in (1.0, 2.0, 3.0):
        metrics.add(loss.fill_(value), None, None)
    assert metrics.take(samples=1, steps=3, seconds=1.0)["train_loss"] == 2.0


def test_values_on_several_devices_are_read_with_one_transfer_from_each(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked: list[int] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: (stacked.append(len(tensors)), stack(tensors))[1])

    class Elsewhere:
        def __init__(self, value: float, index: int) -> None:
            self.tensor = torch.tensor([value])
            self.device = torch.device("cuda", index)
            self.is_cpu = False

        def detach(self) -> torch.Tensor:
            return self.tensor

    given: Any = [torch.tensor(1.0), Elsewhere(2.0, 0), Elsewhere(3.0, 1), torch.tensor([[4.0]]), Elsewhere(5.0, 0)]
    assert read_all(given) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert stacked == [2, 1]
