"""Networks that grow beside their optimizers, and the optimizers of torch."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tests.support.layers import kernel

Params = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Params], Optimizer]] = {
    "adam": lambda p: Adam(p, 1e-2, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, 1e-2, weight_decay=0.1),
    "adamw_foreach": lambda p: AdamW(p, 1e-2, amsgrad=True, foreach=True),
    "adam_fused": lambda p: Adam(p, 1e-2, fused=True),
    "sgd": lambda p: SGD(p, 1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.5),
}
SCHEDULERS: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=30, cycle_momentum=False),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=3), lr_scheduler.StepLR(o, 2)], milestones=[3]
    ),
}
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    first = KasminaLayer(nn.Linear(4, 6), layer_id="first", ramp_steps=2)
    made = nn.Sequential(first, nn.Tanh(), KasminaLayer(nn.Linear(6, 3), layer_id="second", ramp_steps=2))
    made(X)
    return made


def step(net: nn.Module, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
    (net(X) - 1.0).square().mean().backward()
    optimizer.step()


def load(net: nn.Sequential, at: int, growing: GrowingOptimizer, kernel_id: str = "aaaaaaaa") -> nn.Module:
    wrapped = net[at]
    assert isinstance(wrapped, KasminaLayer)
    built = kernel(wrapped.spec, "parallel_expansion")
    wrapped.load_kernel(built, kernel_id=kernel_id, blueprint="parallel_expansion", step=0)
    growing.add(built, beside=wrapped.base.parameters(), name=f"{at}.kernels.0")
    return built


def snapshot(optimizer: Optimizer, parameters: Params) -> list[dict[str, Tensor]]:
    return [{k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)} for p in parameters]
