"""Networks compiled by torch.compile: run a step without it, and compile anew after the network has changed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def _dynamo() -> Any | None:
    """Return the compiler if something in this process has imported it: importing it takes seconds."""
    return sys.modules.get("torch._dynamo")


def recompile() -> None:
    """Forget everything compiled: compiled code does not notice hooks that come or go."""
    dynamo = _dynamo()
    if dynamo is not None:
        dynamo.reset()


def eagerly() -> Callable[[], None] | None:
    """Run compiled code without the compiler from now on, so that hooks see the values.

    Returns:
        What ends it; None if nothing can be compiled in this process.
    """
    dynamo = _dynamo()
    if dynamo is None:
        return None
    import torch

    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)
