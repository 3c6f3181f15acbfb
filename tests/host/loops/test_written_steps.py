"""What loops do in a step: accumulate, scale, clip, differentiate twice, save, copy, fork, fail, and be interrupted."""

import copy
import io
import os
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from tamiyo.host import Handle
from tests.host.loops.written import STEPS, Loop, batch, check


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
