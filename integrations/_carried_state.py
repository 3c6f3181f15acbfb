"""The state of an attached run, carried in its optimizer's state dict.

Every framework saves the optimizer's state and loads it, at a time and to a place of its own. An optimizer's state is
by position, so the kernels must exist before torch loads it. Both follow from one rule: whoever saves the optimizer
saves the run, and whoever loads it restores the run first.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from tamiyo.host import Handle

log = logging.getLogger(__name__)

KEY = "tamiyo"
"""Where the state is in the optimizer's state dict; torch's own load ignores it."""


class CarriedState:
    """Adds the run's state to what `optimizer.state_dict()` returns, and restores it in `optimizer.load_state_dict()`.

    An error while saving is logged, and the checkpoint lacks the run's state. One while loading propagates, because a
    network without its kernels is another network.
    """

    def __init__(self, handle: Handle, optimizer: torch.optim.Optimizer) -> None:
        """Hook into the optimizer, for as long as it exists.

        Args:
            handle: The run.
            optimizer: The run's optimizer; of several, the one that is loaded first.
        """
        self._handle = handle
        self._saving = False
        optimizer.register_state_dict_post_hook(self._add)
        optimizer.register_load_state_dict_pre_hook(self._restore)

    def _add(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        if self._saving:  # the handle's own state is made of the optimizer's
            return
        self._saving = True
        try:
            state[KEY] = self._handle.state_dict()
        except Exception as error:  # the user's checkpoint must be written
            log.warning("the checkpoint lacks the state of run %s: %s", self._handle.run_id, error, exc_info=True)
        finally:
            self._saving = False

    def _restore(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        saved = state.pop(KEY, None)
        if saved is not None:
            self._handle.load_state_dict(saved)
