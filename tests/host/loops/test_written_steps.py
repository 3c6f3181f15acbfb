"""What loops do in a step: accumulate, scale, clip, differentiate twice, save, copy, fork, fail, and be interrupted."""

import copy
import gc
import io
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host import Handle, attach
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import MODEL_PERFORMANCE
from tests.host.loops.loops import attached, settings, train
from tests.host.loops.written import STEPS, Loop, batch, check, mlp


class Scaled(Loop):
    """Accumulates under autocast, with a gradient scaler and clipping."""

    tolerance = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)

    def step(self, number: int) -> Tensor:
        total = torch.zeros(())
        for part in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.loss(*batch(3 * number + part)) / 3
            self.scaler.scale(loss).backward()
            total = total + loss.detach()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return total


class Kept(Loop):
    """Keeps zeros as gradients, and clips a list of parameters that it has made once."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters = list(self.model.parameters())

    def step(self, number: int) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.loss(*batch(number))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss


class Assigned(Loop):
    """Computes gradients by itself."""

    def step(self, number: int) -> Tensor:
        loss = self.loss(*batch(number))
        parameters = list(self.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return loss


class Functional(Loop):
    """Differentiates by torch.func."""

    def step(self, number: int) -> Tensor:
        inputs, labels = batch(number)

        def of(parameters: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(func.functional_call(self.model, parameters, (inputs,)), labels)

        gradients, loss = func.grad_and_value(of)(dict(self.model.named_parameters()))
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradients[name]
        self.optimizer.step()
        found: Tensor = loss
        return found


class PerSample(Loop):
    """Computes the gradient of every sample, as differentially private training does."""

    def step(self, number: int) -> Tensor:
        inputs, labels = batch(number)
        parameters = {name: value.detach() for name, value in self.model.named_parameters()}

        def of(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
            return F.cross_entropy(func.functional_call(self.model, values, (one[None],)), label[None])

        gradients = func.vmap(func.grad(of), (None, 0, 0))(parameters, inputs, labels)
        for name, parameter in self.model.named_parameters():
            parameter.grad = gradients[name].mean(0)
        with torch.no_grad():
            loss = self.loss(inputs, labels)
        self.optimizer.step()
        return loss


class Twice(Loop):
    """Penalizes the gradient at the input, and keeps the graph for a second pass."""

    def step(self, number: int) -> Tensor:
        inputs, labels = batch(number)
        inputs.requires_grad_()
        self.optimizer.zero_grad()
        logits = self.model(inputs)
        loss = F.cross_entropy(logits, labels)
        (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
        (loss + slope.square().sum()).backward(retain_graph=True)
        logits.square().mean().backward()
        self.optimizer.step()
        return loss


class Perturbed(Loop):
    """Takes its gradients at perturbed weights, and all of them as one vector."""

    def step(self, number: int) -> Tensor:
        inputs, labels = batch(number)
        self.optimizer.zero_grad()
        loss = self.loss(inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        moves = [(p, p.grad * 0.01) for p in self.model.parameters() if p.grad is not None]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.add_(move)
        self.optimizer.zero_grad()
        self.loss(inputs, labels).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, move in moves:
                parameter.sub_(move)
        vector = torch.cat([p.grad.flatten() for p in self.model.parameters()])  # type: ignore[union-attr]
        assert bool(vector.isfinite().all())
        self.optimizer.step()
        return loss


class Validating(Loop):
    """Changes modes in the midst of everything."""

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def step(self, number: int) -> Tensor:
        self.model.eval()
        with torch.inference_mode():
            self.model(batch(100 + number)[0])
        self.model.train()
        loss = super().step(number)
        self.model.eval()
        with torch.no_grad():
            self.model(batch(number)[0])
        if self.handle is not None:
            with torch.inference_mode():
                self.handle.validate(lambda: self.loss(*batch(99)))
        self.model.train()
        return loss


class Saving(Loop):
    """Saves and loads model and optimizer, by their states and whole, and copies both."""

    def step(self, number: int) -> Tensor:
        loss = super().step(number)
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"], strict=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        inputs, file = batch(number)[0], io.BytesIO()
        torch.save(self.model, file)
        file.seek(0)
        for copied in (copy.deepcopy(self.model), torch.load(file, weights_only=False)):
            assert torch.equal(copied(inputs), self.model(inputs))
        copy.deepcopy((self.model, self.optimizer))
        return loss


class Returning(Loop):
    """Goes back to its best weights, and looks for a learning rate on the way."""

    def step(self, number: int) -> Tensor:
        if number in (4, 9):
            saved = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))
            for group in self.optimizer.param_groups:
                group["lr"] = 1.0
            for trial in range(3):
                super().step(50 + trial)
            self.model.load_state_dict(saved[0])
            self.optimizer.load_state_dict(saved[1])
        return super().step(number)


class Target(Loop):
    """Copies its weights to a target network now and then, which it has made after `attach`."""

    target: nn.Module | None = None

    def attached(self, handle: Handle) -> None:
        self.target = copy.deepcopy(self.model)

    def step(self, number: int) -> Tensor:
        if self.target is not None and number % 3 == 2:
            self.target.load_state_dict(self.model.state_dict())
            inputs = batch(number)[0]
            assert torch.equal(self.target(inputs), self.model(inputs))
        return super().step(number)


class Momentum(Loop):
    """Moves an average along, by position, that follows the model."""

    average: nn.Module | None = None

    def attached(self, handle: Handle) -> None:
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        handle.follow(self.average)

    def step(self, number: int) -> Tensor:
        if self.average is not None:
            with torch.no_grad():
                for own, other in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    own.lerp_(other, 0.1)
                self.average(batch(number)[0])
        return super().step(number)


class Converted(Loop):
    """Becomes double before and half of the steps after the load."""

    def optimize(self) -> Any:
        return SGD(self.model.parameters(), 0.1)

    def step(self, number: int) -> Tensor:
        if number in (3, 8):
            self.model.to(torch.float64 if number == 3 else torch.float32)
        self.dtype = next(self.model.parameters()).dtype
        return super().step(number)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(inputs.to(self.dtype), labels)


class Frozen(Loop):
    """Freezes layers in the midst of the training."""

    def step(self, number: int) -> Tensor:
        if number == 8:
            self.model.requires_grad_(False)[4].requires_grad_(True)  # type: ignore[index]
        return super().step(number)


class Growing(Loop):
    """Adds layers of its own."""

    model: Any

    def make(self) -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))

    def step(self, number: int) -> Tensor:
        if number in (3, 8):
            layer = nn.Linear(8, 8)
            self.model[0].append(layer)
            self.optimizer.add_param_group({"params": layer.parameters()})
        return super().step(number)


class Failing(Loop):
    """Fails in forward and backward passes, and goes on."""

    model: Any

    def step(self, number: int) -> Tensor:
        def fail(*_: object) -> None:
            raise error

        for error in (RuntimeError("mine"), KeyboardInterrupt()):
            for register in (self.model[0].register_forward_hook, self.model[2].weight.register_hook):
                hook = register(fail)
                with pytest.raises(type(error)):
                    self.loss(*batch(number)).backward()  # type: ignore[no-untyped-call]
                hook.remove()
        with pytest.raises(RuntimeError):
            self.model(torch.zeros(3, 5))
        return super().step(number)


class Shapes(Loop):
    """Has batches of all sizes, and one that is empty."""

    def step(self, number: int) -> Tensor:
        self.model(torch.zeros(0, 8))
        self.optimizer.zero_grad()
        inputs, labels = batch(number)
        count = (16, 1, 3)[number % 3]
        loss = F.cross_entropy(self.model(inputs[:count].reshape(count, 1, 8))[:, 0], labels[:count])
        loss.backward()
        self.optimizer.step()
        return loss


class Skipping(Loop):
    """Leaves out steps whose loss is not finite."""

    def step(self, number: int) -> Tensor:
        inputs, labels = batch(number)
        if number in (4, 8):
            inputs[0] = torch.nan
        self.optimizer.zero_grad()
        loss = self.loss(inputs, labels)
        if torch.isfinite(loss):
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return loss.detach().nan_to_num(1.0)


class Loading(Loop):
    """Reads batches from a worker process."""

    def __init__(self) -> None:
        super().__init__()
        inputs, labels = batch(0, 16 * STEPS)
        loader = DataLoader(
            TensorDataset(inputs, labels), batch_size=16, shuffle=True, num_workers=1, multiprocessing_context="fork"
        )
        self.batches = iter(loader)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(*next(self.batches))


class Forking(Loop):
    """Evaluates in a child process."""

    def step(self, number: int) -> Tensor:
        if number in (4, 9):
            child = os.fork()
            if child == 0:
                try:
                    with torch.no_grad():
                        self.model(torch.zeros(2, 8))
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        return super().step(number)


class Threaded(Loop):
    """Trains in a thread for each step."""

    def step(self, number: int) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(Loop.step(self, number)))
        thread.start()
        thread.join()
        return found[0]


class Backward(Loop):
    """Steps one optimizer for each parameter in the backward pass."""

    def __init__(self) -> None:
        super().__init__()

        def step(parameter: Tensor) -> None:
            own[parameter].step()
            own[parameter].zero_grad()

        own = dict(zip(self.model.parameters(), self.optimizer, strict=True))
        for parameter in own:
            parameter.register_post_accumulate_grad_hook(step)  # type: ignore[no-untyped-call]

    def optimize(self) -> Any:
        return [SGD([parameter], 0.1) for parameter in self.model.parameters()]

    def step(self, number: int) -> Tensor:
        loss = self.loss(*batch(number))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


class Detecting(Loop):
    """Looks for anomalies, keeps activations elsewhere, and allows no operation that is not deterministic."""

    def step(self, number: int) -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            with torch.autograd.detect_anomaly(), torch.autograd.graph.save_on_cpu():
                return super().step(number)
        finally:
            torch.use_deterministic_algorithms(False)


LOOPS: tuple[type[Loop], ...] = (
    Scaled, Kept, Assigned, Functional, PerSample, Twice, Perturbed, Validating, Saving, Returning, Target, Momentum,
    Converted, Frozen, Growing, Failing, Shapes, Skipping, Loading, Forking, Threaded, Backward, Detecting,
)  # fmt: skip


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning", "ignore:.*fork:DeprecationWarning")
def test_a_loop_of_any_kind_computes_and_learns_as_before(kind: type[Loop], caplog: pytest.LogCaptureFixture) -> None:
    if kind in (Loading, Forking) and sys.platform == "win32":
        pytest.skip("there is no fork")
    check(kind, caplog)


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
