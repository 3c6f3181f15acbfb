"""A busy neighbour must not change what an adaptation's latency is worth: pairs, measured on a real run."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host import attach
from tamiyo.schemas import topics
from tamiyo.streams.settings import IntakeSettings, WindowSettings
from tamiyo.streams.stages.intake.stage import IntakeStage
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.measurements import span_components
from tamiyo.streams.stages.rewards.window_summary import WindowSummary
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.chain import Chain
from tests.support.layers import attached_layer
from tests.support.runs import compiled, decision, settings

LOADED, STEPS = 200, 400
ATTEMPTS = 5
PER_CORE = 2
"""Spinning processes on every core: a step takes several times as long, beyond what a reward allows."""


@contextmanager
def hogs() -> Iterator[None]:
    """Keep every core busy with other processes."""
    with ExitStack() as stack:
        for _ in range(PER_CORE * (os.cpu_count() or 1)):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def run(*, busy: bool) -> list[WindowSummary]:
    """Train 400 steps, load a kernel at layer "0" after 200, from then on beside hogs if `busy`; return the windows."""
    chain = Chain()
    chain.add(IntakeStage, IntakeSettings())
    chain.add(WindowsStage, WindowSettings())
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(256, 256), torch.randint(0, 10, (256,))
    with (
        ExitStack() as stack,
        attach(
            model,
            optimizer,
            example_input=inputs,
            run_id="run",
            loss_fn=F.cross_entropy,
            held_out=(inputs, labels),
            settings=settings(sample_interval=10, contribution_interval=10, parameter_budget=10**6),
            transport=chain,
        ) as handle,
    ):
        for step in range(1, STEPS + 1):
            if step == LOADED:
                request = decision(layer_id="0", blueprint="low_rank")
                chain.arrivals += [request, compiled(request, attached_layer(model, "0").spec)]
                if busy:
                    stack.enter_context(hogs())
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)
        assert handle.stats.executed == 1
    return [WindowSummary.of(each, offset) for offset, each in enumerate(chain.log[topics.WINDOWS.name])]


def components(windows: list[WindowSummary]) -> dict[str, float]:
    adaptation = ExecutedAdaptation(
        effective_at=LOADED, layer_id="0", gated=True, parameters_added=0, parameter_budget=1, uncertainty=0.0
    )
    before = [window for window in windows if window.end <= LOADED]
    after = [window for window in windows if window.start >= LOADED and not math.isinf(window.end)]
    assert before
    assert after
    return span_components(adaptation, 0.0, before, after, after)


def differences() -> tuple[float, float, bool]:
    """Return by how much hogs change the speed and the cost component, and whether they would without pairs."""
    quiet, busy = run(busy=False), run(busy=True)
    found, beside = components(quiet), components(busy)
    alone, unpaired = (
        components([replace(window, base_latency_ms=None, kernel_latency_ms=None) for window in windows])
        for windows in (quiet, busy)
    )
    # The component's bound may be as low as this machine's own neighbours let it be.
    noticed = unpaired[rc.SPEED] <= max(alone[rc.SPEED] - 0.3, 0.1 - rc.SPEED_BOUND)
    return abs(beside[rc.SPEED] - found[rc.SPEED]), abs(beside[rc.COST] - found[rc.COST]), noticed


@pytest.mark.timeout(300)
def test_a_busy_neighbour_does_not_change_the_speed() -> None:
    # Without pairs each attempt would miss by .3 or more; with them, one in some attempts does on a busy machine.
    missed = []
    for _ in range(ATTEMPTS):
        speed, cost, noticed = differences()
        if not noticed:
            continue  # this machine has too many neighbours already: others make no difference
        if speed <= 0.1 and cost <= 0.06:
            return
        missed.append(f"the speed by {speed:.2f} and the cost by {cost:.2f}")
    if not missed:
        pytest.skip("this machine has too many neighbours already for others to be noticed")
    pytest.fail(f"hogs changed {'; '.join(missed)} in {ATTEMPTS} attempts")
