"""A seed: the slot at a layer that a kernel grows in, its state and its ramp."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor

from tamiyo.host.blueprints_base import Kernel
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
    kernel_id: str | None = None
    blueprint: str | None = None
    loaded_step: int | None = None
    alpha: float = 0.0
    unloading: bool = False
    gated: bool = False
    permanent: bool = False
    """Survives ERROR_RECOVERY: a fossilized seed comes back FOSSILIZED and is never dropped."""
    executions: int = 0
    errors: int = 0
    """Errors that still count against the seed; forgiven after a long clean run."""
    total_errors: int = 0
    clean: int = 0
    """Clean executions since the last error."""
    probation: bool = False
    """Back from ERROR_RECOVERY: the next error is the last."""
    doomed: bool = False
    """To be dropped at the next `advance`, between steps."""
    quarantined_step: int | None = None
    snapshot: dict[str, Tensor] | None = field(default=None, repr=False)
    """The kernel's parameters when it was last seen healthy."""
    snapshot_step: int | None = None
    step: int = 0
    """The step `alpha` is of."""

    @property
    def live(self) -> bool:
        """Whether the kernel shapes the output now."""

    @property
    def loaded(self) -> bool:
        """Whether a kernel sits here, shaping the output or not."""

    def load(self, kernel: Kernel, *, kernel_id: str, blueprint: str, step: int) -> None:
        """DORMANT -> LOADING (ACTIVE at once where `ramp_steps` is 0). Raises KernelError elsewhere."""

    def unload(self) -> None:
        """Start the way down. A repeat changes nothing. Raises KernelError for DORMANT and FOSSILIZED."""

    def fossilize(self) -> None:
        """ACTIVE -> FOSSILIZED. Raises KernelError elsewhere, and on the way down."""

    def advance(self, step: int) -> bool:
        """Move the ramp to `step`; True once the kernel has to be dropped. Steps never run backwards."""

    def clear(self) -> Kernel | None:
        """-> DORMANT, handing the kernel back."""
        raise KernelError
