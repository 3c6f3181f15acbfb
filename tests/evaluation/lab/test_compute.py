"""The computed clock counts what a run's operations cost, and nothing that the laboratory does for itself."""

import pytest
import torch
from torch import nn

from tamiyo.evaluation.lab.compute import (
    BACKWARD,
    ELEMENTS_PER_SECOND,
    MULTIPLY_ADDS_PER_SECOND,
    OPERATOR_SECONDS,
    PARAMETERS_PER_SECOND,
    START_MS,
    STEP_SECONDS,
    TENSOR_SECONDS,
    ComputeClock,
    forward_seconds,
)
from tamiyo.host._common import clock


def linear_seconds(rows: int, inputs: int, outputs: int) -> float:
    elements = rows * outputs
    return OPERATOR_SECONDS + elements * inputs / MULTIPLY_ADDS_PER_SECOND + elements / ELEMENTS_PER_SECOND


@pytest.mark.parametrize(
    ("module", "shape", "multiply_adds"),
    [
        (nn.Linear(8, 5), (3, 8), 3 * 5 * 8),
        (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 6 * 8 * (4 * 3)),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5), 2 * 6 * 25 * (2 * 9)),
        (nn.ReLU(), (7, 2), 0),
        (nn.LayerNorm(4), (7, 4), 0),
    ],
)
def test_a_forward_pass_costs_its_operator_its_multiply_adds_and_its_elements(
    module: nn.Module, shape: tuple[int, ...], multiply_adds: int
) -> None:
    output = module(torch.zeros(shape))
    expected = OPERATOR_SECONDS + multiply_adds / MULTIPLY_ADDS_PER_SECOND + output.numel() / ELEMENTS_PER_SECOND
    assert forward_seconds(module, output) == pytest.approx(expected, rel=1e-12)


def test_a_training_step_costs_forward_backward_and_update() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    timer = ComputeClock()
    with timer.running():
        with timer.training():
            model(torch.zeros(3, 8))
        timer.complete_step(optimizer)
    forward = linear_seconds(3, 8, 5) + OPERATOR_SECONDS + 15 / ELEMENTS_PER_SECOND + linear_seconds(3, 5, 2)
    update = 4 * TENSOR_SECONDS + (8 * 5 + 5 + 5 * 2 + 2) / PARAMETERS_PER_SECOND
    assert timer.training_seconds == pytest.approx((1 + BACKWARD) * forward + STEP_SECONDS + update, rel=1e-12)
    assert timer.seconds() == pytest.approx(timer.training_seconds, rel=1e-12)
    assert timer.time_ms() == START_MS + int(timer.seconds() * 1000)


def test_validations_take_time_but_are_no_training() -> None:
    model, timer = nn.Linear(8, 5), ComputeClock()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with timer.running():
        model(torch.zeros(3, 8))
        assert timer.seconds() == pytest.approx(linear_seconds(3, 8, 5))
        assert timer.training_seconds == 0.0
        timer.complete_step(optimizer)  # a step without a forward pass: no backward pass either
    assert timer.training_seconds == pytest.approx(STEP_SECONDS + 2 * TENSOR_SECONDS + 45 / PARAMETERS_PER_SECOND)


def test_time_stands_still_when_stopped() -> None:
    model, timer = nn.Linear(8, 5), ComputeClock()
    with timer.running():
        with timer.stopped():
            with timer.stopped():
                model(torch.zeros(3, 8))
            model(torch.zeros(3, 8))
        assert timer.seconds() == 0.0
        model(torch.zeros(3, 8))
        assert timer.seconds() > 0.0


def test_the_clock_is_the_process_clock_only_while_it_runs() -> None:
    model, timer, before = nn.Linear(8, 5), ComputeClock(), clock.current()
    with timer.running():
        assert clock.current() is timer
        with timer.running():  # counts once
            model(torch.zeros(3, 8))
        assert clock.current() is timer
    assert clock.current() is before
    assert timer.seconds() == pytest.approx(linear_seconds(3, 8, 5))
    model(torch.zeros(3, 8))
    assert timer.seconds() == pytest.approx(linear_seconds(3, 8, 5))


def test_the_clock_stops_after_an_error() -> None:
    timer, before = ComputeClock(), clock.current()
    with pytest.raises(RuntimeError), timer.running(), timer.training(), timer.stopped():
        raise RuntimeError
    assert clock.current() is before
    with timer.running():
        nn.Linear(8, 5)(torch.zeros(3, 8))
    assert timer.seconds() > 0.0
