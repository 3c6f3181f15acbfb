"""Wrappers of optimizers, built as the libraries that people use build theirs."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Passing(Optimizer):
    """Shares groups and state with the optimizer inside and calls no `super().__init__`, as accelerate's does."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.param_groups, self.state, self.defaults = optimizer.param_groups, optimizer.state, optimizer.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Imitating:
    """No optimizer by class, forwards everything, refers weakly to a trainer that is gone, as Lightning's does."""

    def __init__(self, optimizer: Optimizer) -> None:
        import weakref

        self._optimizer = optimizer
        self._trainer = weakref.proxy(type("Trainer", (), {})())

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Lookahead(Optimizer):
    """Slow weights every `k` steps, made at once for every parameter, or when first needed."""

    def __init__(self, optimizer: Optimizer, *, k: int = 3, at_once: bool = True) -> None:
        self.optimizer, self.k, self.count = optimizer, k, 0
        self.state, self.defaults = defaultdict(dict), optimizer.defaults
        self.key = "slow_params" if at_once else "slow_buffer"
        if at_once:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p] = {self.key: p.detach().clone(), "slow_momentum": torch.zeros_like(p)}

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    if self.key == "slow_buffer" and self.key not in state:
                        state[self.key] = p.detach().clone()
                    p.lerp_(state[self.key], 0.5)
                    state[self.key].copy_(p)
        return loss


class SAM(Optimizer):
    """Two forward and backward passes a step; the base optimizer is made here and shares the groups."""

    def __init__(self, params: Any, base: Callable[..., Optimizer], rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        closure = torch.enable_grad()(closure)
        loss = closure()
        trained = [(p, g["rho"]) for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p, _ in trained]).norm()
        for p, rho in trained:
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(p.grad, alpha=rho / (float(norm) + 1e-12))
        closure()
        for p, _ in trained:
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        return loss


class FP16Optimizer:
    """Replaces the parameters of the optimizer inside by float32 copies, as apex does."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.fp16_groups = [list(group["params"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["params"] = [torch.nn.Parameter(p.detach().float()) for p in group["params"]]

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Several:
    """Steps several optimizers as one."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> Any:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure: Any = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step(closure)


class Tethered(Optimizer):
    """Keeps a value for every parameter under a name that nobody knows, and needs it at every step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.inner = optimizer
        self.param_groups, self.defaults = optimizer.param_groups, optimizer.defaults
        self.state = defaultdict(dict, {p: {"start": p.detach().clone()} for p in optimizer.param_groups[0]["params"]})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                start: Tensor = self.state[p]["start"]
                p.lerp_(start, 0.01)
        return loss


class Duck:
    """Steps by itself and has no hooks."""

    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters), "lr": 0.1}]

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)


class Prepared(Optimizer):
    """Makes the state of every parameter when it is made, as torch's Adagrad of before 2.13 and its descendants do."""

    def __init__(self, parameters: Any, lr: float = 0.1, *, start: float = 0.5) -> None:
        super().__init__(parameters, {"lr": lr, "start": start})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.full_like(p, start)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p]["sum"].addcmul_(p.grad, p.grad)
                    p.addcdiv_(p.grad, total.sqrt(), value=-group["lr"])
