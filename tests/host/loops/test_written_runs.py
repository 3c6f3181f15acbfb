"""How a run meets what loops do to it: any loss, no end, hooks, interruptions, a second run, threads."""

import gc
import logging
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam

from tamiyo.host import attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tests.host.loops.loops import attached, settings, train
from tests.host.loops.written import batch, mlp

LOSSES: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    # what the loop passes, and whether it is a number
    "graph": (lambda loss: loss, True),
    "column": (lambda loss: loss.unsqueeze(0), True),
    "vector": (lambda loss: loss.repeat(3), True),
    "half": (lambda loss: loss.half(), True),
    "numpy": (lambda loss: np.float32(loss.item()), True),
    "array": (lambda loss: loss.detach().numpy(), True),
    "list": (lambda loss: [1.0, 2.0], True),
    "nan": (lambda loss: float("nan"), True),
    "infinite": (lambda loss: torch.tensor(torch.inf), True),
    "none": (lambda loss: None, False),
    "text": (lambda loss: "0.5", False),
    "empty": (lambda loss: torch.tensor([]), False),
    "huge": (lambda loss: 10**400, False),
    "complex": (lambda loss: 1j, False),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_is_taken_and_one_that_is_no_number_is_reported_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, number = LOSSES[name]
    torch.manual_seed(0)
    model = mlp()
    handle, transport, optimizer = attached(model)
    with caplog.at_level(logging.WARNING, logger="tamiyo.host"):
        for _ in range(6):
            loss = model(torch.randn(16, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=make(loss))
    assert len(caplog.records) == (0 if number else 1)
    assert len(transport.records(MODEL_PERFORMANCE.name)) == 2
    assert transport.dropped == 0


def dropped(steps: int, grown: bool) -> list[weakref.ref[Any]]:
    model = mlp()
    handle, transport, optimizer = attached(model)
    if grown:
        transport.decide("load_kernel", layer="0", blueprint="low_rank")
    train(model, optimizer, handle, steps)
    return [weakref.ref(each) for each in (model, optimizer, handle)]


@pytest.mark.parametrize("grown", [False, True])
def test_a_run_that_is_dropped_without_an_end_leaves_nothing(grown: bool) -> None:
    left = [reference for steps in range(5) for reference in dropped(steps, grown)]  # amid measured steps too
    gc.collect()
    assert [reference() for reference in left] == [None] * len(left)


def test_a_step_in_a_hook_of_the_optimizer_is_reported_once_and_never_fails(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    handle, transport, optimizer = attached(model)
    optimizer.register_step_post_hook(lambda *_: handle.step(loss=0.5))
    transport.decide("load_kernel", layer="0", blueprint="low_rank")
    with caplog.at_level(logging.WARNING, logger="tamiyo.host"):
        for number in range(8):
            F.cross_entropy(model(batch(number)[0]), batch(number)[1]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert len(caplog.records) == 1
    assert "call it after optimizer.step()" in caplog.text
    handle.close()
    assert handle.stats.executed == 0


def test_a_step_in_a_closure_is_a_step() -> None:
    model = mlp()
    handle, transport, optimizer = attached(model)
    transport.decide("load_kernel", layer="0", blueprint="low_rank")

    def closure() -> Tensor:
        loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        handle.step(loss=loss)
        return loss

    for _ in range(6):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert (handle.stats.step, handle.stats.executed, handle.stats.errors) == (6, 1, 0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_an_interruption_at_any_time_leaves_a_run_that_goes_on() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    model = mlp()
    handle, transport, optimizer = attached(model)
    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for number in range(30):
            if number % 10 == 0:
                transport.decide("load_kernel", layer="0", blueprint="low_rank")
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 * (number + 1))
                train(model, optimizer, handle, 50)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20
    train(model, optimizer, handle, 10)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    handle.close()
    assert transport.closed


def test_a_second_run_goes_on_with_what_the_first_has_grown() -> None:
    torch.manual_seed(0)
    model = mlp()
    first, transport, optimizer = attached(model, settings=settings(ramp_steps=6))
    transport.decide("load_kernel", layer="0", blueprint="parallel_expansion")
    train(model, optimizer, first, 4)  # amid the ramp
    first.detach()
    inputs = batch(0)[0]
    before, kernels = model(inputs), [p for name, p in model.named_parameters() if "tamiyo" in name]
    with pytest.raises(ConfigurationError, match="layer 0 has kernels of an earlier run"):
        attached(model, layers=["2", "4"])
    assert torch.equal(model(inputs), before)
    second, transport, optimizer = attached(model, settings=settings(ramp_steps=6))
    assert torch.equal(model(inputs), before)
    assert second.layers == ("0", "2", "4")
    assert second.stats.kernel_parameters == sum(p.numel() for p in kernels) > 0
    values = [p.detach().clone() for p in kernels]
    train(model, optimizer, second, 8)
    assert [id(p) for name, p in model.named_parameters() if "tamiyo" in name] == [id(p) for p in kernels]
    assert not any(torch.equal(a, b) for a, b in zip(values, kernels, strict=True))
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    transport.decide("unload_kernel", layer="0")
    train(model, optimizer, second, 10)
    assert second.stats.kernel_parameters == second.stats.errors == 0
    second.detach()
    assert not [name for name in model.state_dict() if "tamiyo" in name]


def test_kernels_of_an_earlier_run_stay_as_they_are_where_nothing_is_trained() -> None:
    torch.manual_seed(0)
    model = mlp()
    first, transport, optimizer = attached(model)
    transport.decide("load_kernel", layer="0", blueprint="low_rank")
    train(model, optimizer, first, 4)
    first.detach()
    model[0].requires_grad_(False)
    head = SGD([model[4].weight, model[4].bias], 0.1)
    transport = MemoryTransport()
    second = attach(model, head, example_input=torch.zeros(2, 8), settings=settings(), transport=transport)
    kernels = [p for name, p in model.named_parameters() if "tamiyo" in name]
    values = [p.detach().clone() for p in kernels]
    train(model, head, second, 6)
    assert all(torch.equal(a, b) for a, b in zip(values, kernels, strict=True))
    assert second.stats.errors == 0


def test_two_runs_share_an_optimizer() -> None:
    torch.manual_seed(0)
    models = [mlp(), mlp()]
    optimizer = Adam([p for model in models for p in model.parameters()])
    transports = [MemoryTransport(), MemoryTransport()]
    handles = [
        attach(model, optimizer, example_input=torch.zeros(2, 8), settings=settings(), transport=transport)
        for model, transport in zip(models, transports, strict=True)
    ]
    for number in range(10):
        inputs, _ = batch(number)
        loss = (models[0](inputs) - models[1](inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number < 2:
            transports[number].decide("load_kernel", layer="0", blueprint="low_rank")
        for handle in handles:
            handle.step(loss=loss)
    assert [(handle.stats.executed, handle.stats.errors) for handle in handles] == [(1, 0)] * 2
    for handle in handles:
        handle.close()


def test_runs_train_in_threads_of_their_own() -> None:
    found: list[tuple[int, int]] = []

    def work() -> None:
        model = mlp()
        handle, transport, optimizer = attached(model)
        transport.decide("load_kernel", layer="0", blueprint="low_rank")
        train(model, optimizer, handle, 12)
        handle.close()
        found.append((handle.stats.executed, handle.stats.errors))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(1, 0)] * 3
