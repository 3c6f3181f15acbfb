"""Let a model that is not attached yet load the state dict of a grown one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tamiyo.schemas.errors import ConfigurationError


class PlainLoad:
    """While it is open, the model's `load_state_dict` keeps to the names that the model has.

    Lightning loads the model before its optimizer exists, so before it can be attached and its kernels exist. What is
    left out here comes with `Handle.load_state_dict`, which is strict. If none is to follow, `require_equal_names`
    reports what torch would have reported.
    """

    def __init__(self, model: nn.Module) -> None:
        """Open."""
        self._model = model
        self._missing: set[str] = set()
        self._unexpected: set[str] = set()
        self._hook = model.register_load_state_dict_pre_hook(self._keep_own)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """From now on the model loads as ever. Closing again does nothing."""
        self._hook.remove()

    def require_equal_names(self) -> None:
        """Raise ConfigurationError if a state dict was loaded whose names are not those of the model."""
        if self._missing or self._unexpected:
            missing, unexpected = (", ".join(sorted(names)) or "none" for names in (self._missing, self._unexpected))
            raise ConfigurationError(
                "the checkpoint is of another model, and contains no state of an attached run; "
                f"missing: {missing}; unexpected: {unexpected}"
            )

    def _keep_own(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        # torch calls this with a copy of the caller's dict.
        own: dict[str, Tensor] = module.state_dict(prefix=prefix)
        given = {name for name in state if name.startswith(prefix)}
        self._missing, self._unexpected = own.keys() - given, given - own.keys()
        for name in self._unexpected:
            del state[name]
        for name in self._missing:
            state[name] = own[name]
