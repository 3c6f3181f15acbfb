"""Trace with torch.fx while other threads run modules.

torch.fx patches calls and attributes of every module of the process while it traces. So a network that another thread
trains meanwhile would run in the tracer, which does not know it.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

TRACING = threading.RLock()
"""Held while tracing: of two patches at a time, the second would put back the first."""


class ThreadTracer(fx.Tracer):
    """A tracer that leaves the modules of other threads than its own alone; `TRACING` is held while it traces."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a module's call, or make it where another thread calls."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return a module's attribute: traced, or as it is where another thread reads it."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
