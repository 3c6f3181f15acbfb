"""Hooks on a user's module that stays in place: they add what has grown beside it, and show it to an observer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tamiyo.host._common import clock
from tamiyo.host.blueprints._layer_kinds import input_name, layer_input

Grow = Callable[[Tensor, Tensor], Tensor]
"""Returns the output with what has grown, from the input and the module's own output."""
Observe = Callable[[Tensor, Tensor, float], None]
"""Called with (input, output, latency_ms)."""


class InPlaceHooks:
    """The hooks on one module: only those that are needed now, and none while nothing has grown and nobody observes."""

    def __init__(self, base: nn.Module, grow: Grow, traced: Grow, observe: Observe) -> None:
        """Register none yet.

        Args:
            base: The user's module.
            grow: Computes the output at a pass.
            traced: The same in a form that a compiler can trace.
            observe: Receives what an observed pass has shown.
        """
        self.keyword: str | None = None
        """Name of the argument by which the model passes the input; None: by position."""
        self.in_tuple = False
        """Whether the module returns a tuple; its first entry is the output."""
        self._base = base
        self._grow = grow
        self._traced = traced
        self._observe = observe
        self._handles: list[RemovableHandle] = []
        self._needed = (False, False)
        self._started = 0.0

    def connect(self, *, grown: bool, observed: bool) -> None:
        """Register the hooks that are needed, and remove the others.

        Args:
            grown: Whether something live adds to the output.
            observed: Whether `observe` must see the passes.
        """
        needed = (grown or observed, observed)
        if needed == self._needed:
            return
        self.disconnect()
        self._needed = needed
        if needed[0]:
            # First, so that the user's own hooks see the output as the rest of the network does.
            self._handles.append(self._base.register_forward_hook(self._after, prepend=True, with_kwargs=True))
        if observed:
            self._handles.append(self._base.register_forward_pre_hook(self._before))

    def disconnect(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self.forget()

    def forget(self) -> None:
        """Take note that the module has no hooks: it is a copy that was made without them."""
        self._handles, self._needed = [], (False, False)

    def _before(self, *_: Any) -> None:
        self._started = clock.seconds()

    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = layer_input(self._base, args, kwargs)
        first, *rest = output if isinstance(output, tuple) else (output,)
        if not isinstance(given, Tensor) or not isinstance(first, Tensor):
            return None
        if torch.compiler.is_compiling():
            grown = self._traced(given, first)
        else:
            self.keyword = None if args else input_name(self._base, kwargs)
            self.in_tuple = isinstance(output, tuple)
            grown = self._grow(given, first)
            if self._needed[1]:
                self._observe(given, grown, (clock.seconds() - self._started) * 1e3)
        if grown is first:
            return None
        return (grown, *rest) if isinstance(output, tuple) else grown
