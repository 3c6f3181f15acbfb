"""Import torch_geometric without torch._dynamo, a second of CPU time that only torch.compile and optimisers need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch  # noqa: F401  before the context, as torch's own import may load the module

NAME = "torch._dynamo"


class _Placeholder(ModuleType):
    """Stands for torch._dynamo in `sys.modules`; the first use of an attribute loads the real module."""

    def __getattr__(self, name: str) -> Any:
        _remove(self)
        return getattr(importlib.import_module(NAME), name)


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Make `import torch._dynamo` cost nothing inside the context; the real module loads when it is first used.

    `torch_geometric/isinstance.py` (2.8, line 8) imports it for one isinstance check that is made when a dataset's or a
    model's configuration is built. After the context nothing of this is left: torch itself loads the module when
    `torch._dynamo` is first read (`torch.__getattr__`), and an import statement finds no trace of the placeholder.
    `importlib.util.LazyLoader` would not do: an import statement reads the module's `__spec__`, and that loads it.
    """
    if NAME in sys.modules:
        yield
        return
    placeholder = _Placeholder(NAME)
    sys.modules[NAME] = placeholder
    try:
        yield
    finally:
        _remove(placeholder)


def _remove(placeholder: ModuleType) -> None:
    if sys.modules.get(NAME) is placeholder:
        del sys.modules[NAME]
