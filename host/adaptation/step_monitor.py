"""Notice that a loop no longer steps the optimizer that was attached."""

from __future__ import annotations

import logging
from typing import Any

from tamiyo.host.adaptation.unwrapping import OptimizerChain

log = logging.getLogger(__name__)

CHANGES = 10
"""Changes of a parameter in place without a step of its optimizer, after which another one must be at work. Loading a
checkpoint or exchanging the weights for averaged ones makes one or two; a skipped or accumulated step makes none."""
STEPS = 1000
"""Steps without one of the optimizer after which it is taken as replaced, whatever the parameters do: in a captured
CUDA graph, for example, no hook is called. Nobody accumulates gradients over so many batches."""


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
        self._versions: dict[int, int] = {}
        self._hook = chain.optimizer.register_step_post_hook(self._record)

    def complete(self) -> None:
        """Complete a training step."""
        if self._stepped:
            self._stepped, self.missed, self.stalled = False, 0, False
            return
        self.missed += 1
        if self.missed == 1:
            # In-place changes of a tensor are counted on the host.
            self._versions = {id(parameter): parameter._version for parameter in self._chain.parameters}
        elif not self.stalled and self.missed % CHANGES == 0:
            self.stalled = self.missed >= STEPS or self._changes() >= CHANGES
            if self.stalled and not self._reported:
                self._reported = True
                log.warning("%s; no kernel is loaded beside its parameters from now on", self.reason)

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

    def _changes(self) -> int:
        """Return how often the parameter that changed most has changed since the optimizer's last step."""
        now = {id(parameter): parameter._version for parameter in self._chain.parameters}
        return max((version - self._versions.get(key, version) for key, version in now.items()), default=0)

    def _record(self, *_: Any) -> None:
        self._stepped = True
