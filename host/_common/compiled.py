"""Networks compiled by torch.compile: run a step without it, and compile anew after the network has changed."""

from __future__ import annotations

import sys
import weakref
from typing import Any

_eager: set[int] = set()
"""The owners for whom compiled code runs without the compiler now."""
_stance: Any = None


def _dynamo() -> Any | None:
    """Return the compiler if something in this process has imported it: importing it takes seconds."""
    return sys.modules.get("torch._dynamo")


def recompile() -> None:
    """Forget everything compiled: compiled code does not notice hooks that come or go."""
    dynamo = _dynamo()
    if dynamo is not None:
        dynamo.reset()


def run_eagerly(owner: object) -> None:
    """Run compiled code without the compiler, so that hooks see values, until `run_compiled` or the owner's end."""
    global _stance
    if _dynamo() is None:
        return
    if not _eager:
        import torch

        _stance = torch.compiler.set_stance("force_eager")
    key = id(owner)
    if key not in _eager:
        _eager.add(key)
        weakref.finalize(owner, _release, key).atexit = False


def run_compiled(owner: object | None = None) -> None:
    """Run compiled code with the compiler again, unless another owner still needs its values.

    Args:
        owner: Who needs them no longer; None: all, such as a run that an exception ended amid a sampled step.
    """
    for key in [id(owner)] if owner is not None else list(_eager):
        _release(key)


def _release(key: int) -> None:
    global _stance
    if key in _eager:
        _eager.discard(key)
        if not _eager:
            _stance.__exit__(None, None, None)
            _stance = None
