"""Notice that a loop no longer steps the optimizer that was attached."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from tamiyo.host._adaptation.unwrapping import OptimizerChain

log = logging.getLogger(__name__)

CHANGES = 10
"""Steps of another optimizer with the same parameters, or changes of a parameter in place, after which the attached one
is taken as replaced. Loading a checkpoint or exchanging the weights for averaged ones makes one or two changes; a
skipped or accumulated step makes none."""
STEPS = 1000
"""Training steps without a step of the optimizer after which it is taken as replaced in any case: in a captured CUDA
graph, for example, no hook is called. Nobody accumulates gradients over so many batches."""


class StepMonitor:
    """Counts the training steps in which an optimizer did not step; no device is read for it."""

    def __init__(self, chain: OptimizerChain) -> None:
        """Hook into the optimizer."""
        self.missed = 0
        """Training steps since the optimizer's last step."""
        self.stalled = False
        """Whether the optimizer is taken as replaced; a step of it ends that."""
        self._chain = chain
        self._stepped = False
        self._reported = False
        self._others = 0
        """Steps of other optimizers with the same parameters since the optimizer's last step."""
        self._versions: dict[int, int] = {}
        self._hook = chain.optimizer.register_step_post_hook(self._record)
        _register()

    def complete(self) -> bool:
        """Complete a training step; return whether the optimizer has stepped in it."""
        if self._stepped:
            self._stepped = False
            if self.missed:
                self.missed, self.stalled = 0, False
                _waiting.discard(self)
            return True
        self.missed += 1
        if self.missed == 1:
            _waiting.add(self)
            # torch counts the in-place changes of a tensor on the host; those of fused optimizers are not counted.
            self._versions = {id(parameter): parameter._version for parameter in self._chain.parameters}
        elif not self.stalled and self.missed % CHANGES == 0:
            self.stalled = self.missed >= STEPS or max(self._others, self._changes()) >= CHANGES
            if self.stalled and not self._reported:
                self._reported = True
                log.warning("%s; no kernel is loaded beside its parameters from now on", self.reason)
        return False

    @property
    def reason(self) -> str:
        """Why kernels cannot be trained while the optimizer is stalled."""
        return (
            f"{self._chain.name} has not stepped for {self.missed} steps: if the loop has replaced it, detach and "
            "attach with the new optimizer"
        )

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()
        _waiting.discard(self)

    def _changes(self) -> int:
        """Return how often the parameter that changed most has changed since the optimizer's last step."""
        now = {id(parameter): parameter._version for parameter in self._chain.parameters}
        return max((version - self._versions.get(key, version) for key, version in now.items()), default=0)

    def _record(self, *_: Any) -> None:
        self._stepped, self._others = True, 0

    def record_other(self, optimizer: Optimizer) -> None:
        """Count a step of any optimizer of the process that has parameters of this one."""
        if any(optimizer is each for each in (self._chain.optimizer, *self._chain.wrappers)):
            return
        first = [group["params"][0] for group in optimizer.param_groups if group["params"]]
        self._others += any(parameter is own for parameter in first for own in self._chain.parameters)


# One hook for all optimizers of the process, which stays: torch calls its hooks in a loop over a dict, which must not
# change while a step, perhaps in another thread, is in that loop. It keeps no monitor, and so no model, alive.
_registered = threading.Event()
_waiting: weakref.WeakSet[StepMonitor] = weakref.WeakSet()
"""Monitors whose optimizer did not step in the latest training step."""


def _register() -> None:
    if not _registered.is_set():
        _registered.set()
        register_optimizer_step_post_hook(_record_step)


def _record_step(optimizer: Optimizer, *_: Any) -> None:
    if _waiting:
        for monitor in list(_waiting):
            monitor.record_other(optimizer)
