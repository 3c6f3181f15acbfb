"""Recovery from a kernel that raises, or returns values that are not finite.

Training continues with correct outputs: a kernel that fails is bypassed in the same step. Its parameters are replaced
only between steps (`maintain`), never while a backward pass still needs them.

    1st error      retry at once if the parameters are finite; else fall back, then reload or reset
    2nd error      fall back, then reload the last healthy parameters, or reset to a zero delta
    3rd error      fall back: ERROR_RECOVERY, bypassed; reset after a quarantine, then on probation
    on probation   at the next error unload (a fossilized kernel returns to quarantine)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn

from tamiyo.host._common import clock
from tamiyo.host._layers.seed import Seed, SeedState
from tamiyo.schemas.errors import KernelError

log = logging.getLogger(__name__)


class RecoveryStrategy(StrEnum):
    """The five strategies, in order of escalation."""

    RETRY = "retry"
    FALL_BACK = "fall_back"
    RELOAD = "reload"
    RESET = "reset"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class RecoveryEvent:
    """One attempt to recover, for the telemetry. `success`: the network's output is correct after it."""

    layer_id: str
    seed_id: int
    kernel_id: str
    error_type: str
    message: str
    strategy: str
    success: bool
    recovery_time_ms: float


class ErrorRecovery:
    """Chooses and executes recovery strategies; the layers of a model share one.

    Callbacks run in the training thread.
    """

    def __init__(
        self,
        *,
        max_errors: int = 3,
        forgive_after: int = 1000,
        quarantine_steps: int = 200,
        snapshot_every: int = 100,
        on_event: Callable[[RecoveryEvent], None] | None = None,
        on_replaced: Callable[[Iterable[nn.Parameter]], None] | None = None,
        source: Callable[[str], Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Set the thresholds.

        Args:
            max_errors: Errors after which a kernel is quarantined.
            forgive_after: Executions without an error that clear the earlier ones.
            quarantine_steps: Length of a quarantine, training steps.
            snapshot_every: Steps between two snapshots of healthy parameters.
            on_event: Called with each RecoveryEvent.
            on_replaced: Called with parameters whose values were replaced, so that the optimiser drops their state.
            source: Returns the parameters that a kernel id was stored with, or raises KernelError.
        """
        self.max_errors = max_errors
        self.forgive_after = forgive_after
        self.quarantine_steps = quarantine_steps
        self.snapshot_every = snapshot_every
        self.on_event = on_event
        self.on_replaced = on_replaced
        self.source = source

    def __getstate__(self) -> dict[str, object]:
        # Callbacks refer to threads and clients, which a copy of the model (such as an EMA) must not include.
        return self.__dict__ | {"on_event": None, "on_replaced": None, "source": None}

    def succeeded(self, seed: Seed) -> None:
        """Count an execution without an error; `forgive_after` of them in a row clear the earlier errors."""
        seed.executions += 1
        if seed.errors or seed.probation:
            seed.clean += 1
            if seed.clean >= self.forgive_after:
                seed.errors, seed.clean, seed.probation = 0, 0, False

    def recover(
        self, layer_id: str, seed: Seed, error: Exception, attempt: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """Handle an error in a forward pass, or one that was found after it.

        Args:
            layer_id: The layer, for the event.
            seed: The seed whose kernel failed.
            error: What it raised.
            attempt: Computes the delta again; None: the pass is over.

        Returns:
            The delta if a retry succeeded; None: bypass the kernel in this step.
        """
        started = clock.seconds()
        seed.errors, seed.total_errors, seed.clean = seed.errors + 1, seed.total_errors + 1, 0
        if seed.probation and not seed.permanent:
            seed.quarantine()
            seed.doomed = True
            self._report(layer_id, seed, error, RecoveryStrategy.UNLOAD, True, started)
            return None
        if seed.probation or seed.errors >= self.max_errors:
            seed.quarantine()
        elif attempt is not None and seed.errors == 1 and is_finite(seed):
            delta = self._retry(attempt)
            self._report(layer_id, seed, error, RecoveryStrategy.RETRY, delta is not None, started)
            if delta is not None:
                return delta
        else:
            seed.awaiting_repair = True
        self._report(layer_id, seed, error, RecoveryStrategy.FALL_BACK, True, started)
        return None

    def maintain(self, layer_id: str, seed: Seed, step: int) -> None:
        """Repair the kernel of a seed, end its quarantine, or take a snapshot of it. Call between steps."""
        if seed.kernel is None or seed.doomed or seed.unloading:
            return
        if seed.awaiting_repair:
            self._repair(layer_id, seed)
        elif seed.state is SeedState.ERROR_RECOVERY:
            if step - seed.quarantined_step >= self.quarantine_steps:
                self._reset(layer_id, seed, KernelError(f"the quarantine of {self.quarantine_steps} steps has ended"))
                seed.release()
        elif step - seed.snapshot_step >= self.snapshot_every and not seed.errors:
            # Whether it is finite is read only when it is needed: reading waits for the device.
            taken = {k: v.detach().clone() for k, v in seed.kernel.state_dict().items()}
            seed.snapshots = (taken, *seed.snapshots[:1])
            seed.snapshot_step = step

    def _retry(self, attempt: Callable[[], Tensor]) -> Tensor | None:
        try:
            return attempt()
        except Exception as error:  # training comes first: bypass the kernel
            log.debug("retry failed: %s", error)
            return None

    def _repair(self, layer_id: str, seed: Seed) -> None:
        started = clock.seconds()
        seed.awaiting_repair = False
        failure = KernelError("there are no healthy parameters to reload")
        try:
            values = self._healthy(seed)
            assert seed.kernel is not None
            with torch.no_grad():
                own = dict(seed.kernel.named_parameters())
                if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in values.items()}:
                    raise KernelError(f"the stored parameters of kernel {seed.kernel_id} have other shapes")
                for name, parameter in own.items():
                    parameter.copy_(values[name])
        except KernelError as error:
            failure = error
        else:
            self._forget(seed)
            self._report(layer_id, seed, KernelError("consecutive errors"), RecoveryStrategy.RELOAD, True, started)
            return
        self._report(layer_id, seed, failure, RecoveryStrategy.RELOAD, False, started)
        self._reset(layer_id, seed, failure)

    def _healthy(self, seed: Seed) -> Mapping[str, Tensor]:
        for snapshot in seed.snapshots:
            if all(bool(torch.isfinite(values).all()) for values in snapshot.values()):
                return snapshot
        if self.source is None:
            raise KernelError("there are no healthy parameters to reload: no snapshot yet, and no cache")
        return self.source(seed.kernel_id)

    def _reset(self, layer_id: str, seed: Seed, error: Exception) -> None:
        started = clock.seconds()
        assert seed.kernel is not None
        seed.kernel.reset()
        seed.snapshots = ()
        self._forget(seed)
        self._report(layer_id, seed, error, RecoveryStrategy.RESET, is_finite(seed), started)

    def _forget(self, seed: Seed) -> None:
        # The optimiser's moments may contain NaN, which its next step would write back.
        assert seed.kernel is not None
        for parameter in seed.kernel.parameters():
            parameter.grad = None
        if self.on_replaced is not None:
            self.on_replaced(list(seed.kernel.parameters()))

    def _report(
        self,
        layer_id: str,
        seed: Seed,
        error: Exception,
        strategy: RecoveryStrategy,
        success: bool,
        started: float,
    ) -> None:
        event = RecoveryEvent(
            layer_id=layer_id,
            seed_id=seed.index,
            kernel_id=seed.kernel_id,
            error_type=type(error).__name__,
            message=str(error)[:500],
            strategy=strategy.value,
            success=success,
            recovery_time_ms=(clock.seconds() - started) * 1e3,
        )
        log.info("kernel error handled: %s", event)
        if self.on_event is not None:
            self.on_event(event)


def is_finite(seed: Seed) -> bool:
    """Return whether every parameter of the seed's kernel is finite."""
    if seed.kernel is None:
        return True
    return all(bool(torch.isfinite(p.detach()).all()) for p in seed.kernel.parameters())
