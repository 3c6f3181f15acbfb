"""Count where Python waits for a device: reading a tensor's values, or copying them to another device."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_READING = {
    "aten::_local_scalar_dense",  # item(), float(), bool()
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
}
_COPYING = {"aten::_to_copy", "aten::copy_"}
# On a CPU these read memory without an operation.
_METHODS: set[Callable[..., Any]] = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Elsewhere(Tensor):
    """A tensor for which the SDK would have to wait; a number on the CPU is read at once."""

    is_cpu = False


class _Methods(TorchFunctionMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            self._counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class Synchronisations(TorchDispatchMode):
    """A context that counts them in forward and backward passes and everything else of its thread.

    Compare with the same code without the SDK: an optimiser of torch may read its own tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        """By operation or method."""
        self._methods = _Methods(self.counts)

    def __enter__(self) -> "Synchronisations":
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        masked = name == "aten::index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        if masked or name in _READING or (name in _COPYING and _devices(args, result) > 1):
            self.counts[name] += 1
        return result


def _devices(args: Any, result: Any) -> int:
    """Return the number of devices that an operation involves."""
    return len({each.device for each in (*args, result) if isinstance(each, torch.Tensor)})
