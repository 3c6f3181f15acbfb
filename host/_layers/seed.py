"""A seed: a slot at a layer in which a kernel grows, with its state and its ramp."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from tamiyo.host._layers.delta_guard import DeltaGuard
from tamiyo.host.blueprints._base import Kernel
from tamiyo.schemas.errors import KernelError

RAMP_STEPS = 50
"""Default number of steps over which a kernel's share of the output rises from 0 to 1, or falls."""


class SeedState(StrEnum):
    """State of a seed; a kernel that is being unloaded stays ACTIVE until its share of the output is 0."""

    DORMANT = "DORMANT"
    LOADING = "LOADING"
    ACTIVE = "ACTIVE"
    ERROR_RECOVERY = "ERROR_RECOVERY"
    FOSSILIZED = "FOSSILIZED"


@dataclass(slots=True, eq=False)
class Seed:
    """One slot. `alpha` (0..1) is the share of the kernel's delta that is added to the layer's output.

    Transitions: DORMANT -load-> LOADING -ramp done-> ACTIVE -fossilize-> FOSSILIZED; LOADING or ACTIVE -unload->
    `unloading`, ramping down -> DORMANT; any of them -errors-> ERROR_RECOVERY (bypassed) -release-> LOADING.
    """

    index: int
    ramp_steps: int = RAMP_STEPS
    state: SeedState = SeedState.DORMANT
    kernel: Kernel | None = None
    kernel_id: str = ""
    blueprint: str = ""
    loaded_step: int = 0
    ticks: int = 0
    """Position on the ramp, 0..ramp_steps: an integer, so that a ramp up and down ends exactly at 0."""
    step: int = 0
    """The training step at which `ticks` was updated."""
    unloading: bool = False
    gated: bool = False
    """Left out of the output temporarily, by `KasminaLayer.gated_off`."""
    permanent: bool = False
    """Fossilized: returns to FOSSILIZED after ERROR_RECOVERY and is never dropped."""
    executions: int = 0
    total_errors: int = 0
    errors: int = 0
    """Errors that count towards a quarantine; many executions without an error clear them."""
    clean: int = 0
    """Executions since the last error."""
    probation: bool = False
    """Released from ERROR_RECOVERY: the next error unloads the kernel."""
    awaiting_repair: bool = False
    """Bypassed until `KasminaLayer.advance` replaces its parameters."""
    doomed: bool = False
    """Bypassed until `KasminaLayer.advance` drops it."""
    quarantined_step: int = 0
    snapshots: tuple[dict[str, Tensor], ...] = field(default=(), repr=False)
    """The kernel's parameters at the latest two times at which nothing was wrong, the newest first."""
    snapshot_step: int = 0
    guard: DeltaGuard | None = field(default=None, repr=False)
    """Keeps deltas that are not finite out of training where they cannot be read at once."""

    @property
    def alpha(self) -> float:
        """Share of the delta in the output while the seed is live, 0..1."""
        if self.kernel is None:
            return 0.0
        return self.ticks / self.ramp_steps if self.ramp_steps else float(not self.unloading)

    @property
    def loaded(self) -> bool:
        """Whether the seed carries a kernel, live or bypassed."""
        return self.kernel is not None

    @property
    def live(self) -> bool:
        """Whether the kernel contributes to the output now."""
        bypassed = self.gated or self.doomed or self.awaiting_repair or self.state is SeedState.ERROR_RECOVERY
        return self.kernel is not None and not bypassed and self.alpha > 0.0

    def load(self, kernel: Kernel, *, kernel_id: str, blueprint: str, step: int) -> None:
        """DORMANT -> LOADING, one step up the ramp, because a kernel with alpha 0 would get no gradient.

        ACTIVE at once if `ramp_steps` is 0 or 1. Raises KernelError in any other state.
        """
        if self.state is not SeedState.DORMANT:
            raise KernelError(f"seed {self.index} is {self.state} with kernel {self.kernel_id}: unload it first")
        self.kernel, self.kernel_id, self.blueprint = kernel, kernel_id, blueprint
        self.loaded_step = self.step = self.snapshot_step = step
        self.ticks = min(1, self.ramp_steps)
        self.state = SeedState.LOADING
        self._arrive()

    def unload(self) -> None:
        """Ramp down from the current position; a repetition changes nothing. A bypassed kernel is dropped at once.

        Raises KernelError if there is no kernel, or it is permanent.
        """
        if self.kernel is None:
            raise KernelError(f"seed {self.index} is DORMANT: there is no kernel to unload")
        if self.permanent:
            raise KernelError(f"seed {self.index} is FOSSILIZED: its kernel {self.kernel_id} is permanent")
        if self.state is SeedState.ERROR_RECOVERY or self.awaiting_repair:
            self.doomed = True
        self.state = self.state if self.state is SeedState.ERROR_RECOVERY else SeedState.ACTIVE
        self.unloading = True

    def fossilize(self) -> None:
        """ACTIVE -> FOSSILIZED. Raises KernelError in any other state, and while unloading or awaiting repair."""
        if self.state is not SeedState.ACTIVE or self.unloading or self.awaiting_repair:
            state = "being unloaded" if self.unloading else "under repair" if self.awaiting_repair else self.state
            raise KernelError(f"seed {self.index} is {state}: only an ACTIVE kernel can be made permanent")
        self.state, self.permanent = SeedState.FOSSILIZED, True

    def advance(self, step: int) -> bool:
        """Advance the ramp to `step`, ignoring earlier steps; return whether the kernel must be dropped now."""
        passed, self.step = max(0, step - self.step), max(step, self.step)
        if self.kernel is None or self.doomed:
            return self.doomed
        if self.unloading:
            self.ticks = max(0, self.ticks - passed)
            return self.ticks == 0
        if self.state is SeedState.LOADING:
            self.ticks = min(self.ramp_steps, self.ticks + passed)
            self._arrive()
        return False

    def quarantine(self) -> None:
        """Any state -> ERROR_RECOVERY: bypassed until `release`."""
        self.state, self.quarantined_step, self.awaiting_repair = SeedState.ERROR_RECOVERY, self.step, False

    def release(self) -> None:
        """ERROR_RECOVERY -> LOADING on probation, at the start of the ramp."""
        self.state, self.probation, self.errors = SeedState.LOADING, True, 0
        self.ticks = min(1, self.ramp_steps)
        self._arrive()

    def clear(self) -> Kernel:
        """Any state -> DORMANT; return the kernel. Raises KernelError if there is none."""
        kernel = self.kernel
        if kernel is None:
            raise KernelError(f"seed {self.index} is DORMANT: there is no kernel to drop")
        if self.guard is not None:
            self.guard.release()
        fresh = Seed(self.index, self.ramp_steps, step=self.step, gated=self.gated)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
        return kernel

    def _arrive(self) -> None:
        if self.state is SeedState.LOADING and self.ticks >= self.ramp_steps:
            self.state = SeedState.FOSSILIZED if self.permanent else SeedState.ACTIVE
