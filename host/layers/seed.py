"""A seed: the slot at a layer that a kernel grows in, its state and its ramp."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from tamiyo.host.blueprints.base import Kernel
from tamiyo.schemas.errors import KernelError

# Steps over which a kernel's share of the output goes from 0 to 1, or back.
RAMP_STEPS = 50


class SeedState(StrEnum):
    """What a seed is doing; a seed on its way out stays ACTIVE until its share of the output is 0."""

    DORMANT = "DORMANT"
    LOADING = "LOADING"
    ACTIVE = "ACTIVE"
    ERROR_RECOVERY = "ERROR_RECOVERY"
    FOSSILIZED = "FOSSILIZED"


@dataclass(slots=True, eq=False)
class Seed:
    """One slot. `alpha` (0..1) is the share of the kernel's delta that reaches the layer's output.

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
    """Steps up the ramp, 0..ramp_steps: an integer, so that a ramp up and down ends exactly where it began."""
    step: int = 0
    """The step that `ticks` is of."""
    unloading: bool = False
    gated: bool = False
    """Left out for the moment, by `KasminaLayer.gated_off`."""
    permanent: bool = False
    """Fossilized: comes back FOSSILIZED from ERROR_RECOVERY and is never dropped."""
    executions: int = 0
    total_errors: int = 0
    errors: int = 0
    """Errors that still count against the kernel; a long clean run forgives them."""
    clean: int = 0
    """Executions without an error since the last one."""
    probation: bool = False
    """Back from ERROR_RECOVERY: the next error is the last."""
    awaiting_repair: bool = False
    """Bypassed until its parameters are replaced, at the next `KasminaLayer.advance`."""
    doomed: bool = False
    """Bypassed, and dropped at the next `KasminaLayer.advance`."""
    quarantined_step: int = 0
    snapshot: dict[str, Tensor] | None = field(default=None, repr=False)
    """The kernel's parameters when they were last seen healthy."""
    snapshot_step: int = 0

    @property
    def alpha(self) -> float:
        """Share of the delta in the output, 0..1, were the seed live."""
        if self.kernel is None:
            return 0.0
        return self.ticks / self.ramp_steps if self.ramp_steps else float(not self.unloading)

    @property
    def loaded(self) -> bool:
        """Whether a kernel sits here, in effect or not."""
        return self.kernel is not None

    @property
    def live(self) -> bool:
        """Whether the kernel shapes the output now."""
        bypassed = self.gated or self.doomed or self.awaiting_repair or self.state is SeedState.ERROR_RECOVERY
        return self.kernel is not None and not bypassed and self.alpha > 0.0

    def load(self, kernel: Kernel, *, kernel_id: str, blueprint: str, step: int) -> None:
        """DORMANT -> LOADING, the first step up the ramp taken: a kernel learns from its first step on.

        ACTIVE at once where `ramp_steps` is 0 or 1. Raises KernelError in any other state.
        """
        if self.state is not SeedState.DORMANT:
            raise KernelError(f"seed {self.index} is {self.state}, holding kernel {self.kernel_id}: unload it first")
        self.kernel, self.kernel_id, self.blueprint = kernel, kernel_id, blueprint
        self.loaded_step = self.step = self.snapshot_step = step
        self.ticks = min(1, self.ramp_steps)
        self.state = SeedState.LOADING
        self._arrive()

    def unload(self) -> None:
        """Start the way down, from wherever the ramp is; a repeat changes nothing. A bypassed kernel goes at once.

        Raises KernelError where there is nothing to unload, or it is permanent.
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
        """ACTIVE -> FOSSILIZED. Raises KernelError in any other state, and on the way down."""
        if self.state is not SeedState.ACTIVE or self.unloading or self.awaiting_repair:
            doing = "being unloaded" if self.unloading else "under repair" if self.awaiting_repair else self.state
            raise KernelError(f"seed {self.index} is {doing}: only an ACTIVE kernel can be made permanent")
        self.state, self.permanent = SeedState.FOSSILIZED, True

    def advance(self, step: int) -> bool:
        """Move the ramp to `step` (a step already seen changes nothing); True once the kernel has to be dropped."""
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
        """-> ERROR_RECOVERY: bypassed until released."""
        self.state, self.quarantined_step, self.awaiting_repair = SeedState.ERROR_RECOVERY, self.step, False

    def release(self) -> None:
        """ERROR_RECOVERY -> LOADING on probation, at the foot of the ramp."""
        self.state, self.probation, self.errors = SeedState.LOADING, True, 0
        self.ticks = min(1, self.ramp_steps)
        self._arrive()

    def clear(self) -> Kernel:
        """-> DORMANT, handing the kernel over. Raises KernelError where there is none."""
        kernel = self.kernel
        if kernel is None:
            raise KernelError(f"seed {self.index} is DORMANT: there is no kernel to drop")
        fresh = Seed(self.index, self.ramp_steps, step=self.step, gated=self.gated)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))
        return kernel

    def _arrive(self) -> None:
        if self.state is SeedState.LOADING and self.ticks >= self.ramp_steps:
            self.state = SeedState.FOSSILIZED if self.permanent else SeedState.ACTIVE
