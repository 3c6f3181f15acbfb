"""Notice the wrapper that a training loop puts around its model after it was attached.

A resumed training loads its checkpoint, kernels included, before it wraps the model. DistributedDataParallel would take
these kernels for parameters that never leave: it waits for their gradients, and fails when one of them is unloaded. So
it leaves them out, and their gradients are averaged as those of kernels that join later are. Wrappers within which
kernels cannot grow are refused where they are made.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from tamiyo.host._layers.grown_kernels import GrownKernels
from tamiyo.host._layers.unwrapping import refusal
from tamiyo.schemas.errors import ConfigurationError

_attached: WeakKeyDictionary[GrownKernels, tuple[int, ...]] = WeakKeyDictionary()
"""The ranks that train each attached model together; empty for one process alone."""
_registered = threading.Event()


def expect_wrapper(kernels: GrownKernels, ranks: tuple[int, ...]) -> None:
    """Notice when the model of some kernels is wrapped.

    Args:
        kernels: Those of the attached model.
        ranks: Global ranks of the processes that train it together; empty for one alone.
    """
    _attached[kernels] = ranks
    if not _registered.is_set():
        _registered.set()
        register_module_module_registration_hook(_wrapped)


def forget_wrapper(kernels: GrownKernels, *, grown: bool) -> None:
    """Let the model be wrapped as the user likes: its run has ended.

    Args:
        kernels: Those of the run.
        grown: Whether the model keeps some. If several ranks have trained them, their gradients are still averaged
            beside DistributedDataParallel.
    """
    if not (grown and _attached.get(kernels)):
        _attached.pop(kernels, None)


def require_one_run(wrapper: nn.Module, ranks: tuple[int, ...]) -> None:
    """Raise ConfigurationError unless the ranks of a DistributedDataParallel are those that train one run."""
    if not isinstance(wrapper, nn.parallel.DistributedDataParallel):
        return
    found = tuple(dist.get_process_group_ranks(wrapper.process_group))
    if len(found) > 1 and found != ranks:
        attached = f"ranks {', '.join(map(str, ranks))} as one run" if ranks else "each rank as a run of its own"
        raise ConfigurationError(
            f"DistributedDataParallel trains ranks {', '.join(map(str, found))} together, and the model was attached "
            f"with {attached}: call init_process_group before attach, leave distributed= out, and with a process_group "
            "attach the wrapped model"
        )


def _wrapped(wrapper: nn.Module, name: str, module: nn.Module | None) -> None:
    """See every module that becomes a part of another one in this process: a hook of torch."""
    if module is None or not _attached:
        return
    replicated = isinstance(wrapper, nn.parallel.DistributedDataParallel)
    reason = None if isinstance(wrapper, torch.jit.ScriptModule) else refusal(wrapper)  # that of a trace is a copy
    if not replicated and reason is None:
        return
    inside = {id(each) for each in module.modules()}
    found = [(kernels, ranks) for kernels, ranks in list(_attached.items()) if id(kernels) in inside]
    for kernels, ranks in found:
        if reason is not None:
            raise ConfigurationError(f"{type(wrapper).__name__} cannot grow: {reason}; the model is attached")
        require_one_run(wrapper, ranks)
        _leave_out(wrapper, module, kernels)


def _leave_out(wrapper: nn.Module, module: nn.Module, kernels: GrownKernels) -> None:
    """Let a DistributedDataParallel that is being made ignore the kernels' parameters and buffers."""
    own = {id(each) for each in (*kernels.parameters(), *kernels.buffers())}
    named = [*module.named_parameters(), *module.named_buffers()]
    made: Any = wrapper
    made.parameters_to_ignore |= {name for name, value in named if id(value) in own}
    made._module_parameters = [each for each in made._module_parameters if id(each) not in own]
