"""What happens when a kernel raises or yields values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor, nn

from tamiyo.host.seeds import Seed


class RecoveryStrategy(StrEnum):
    """The five ways back, in the order they escalate."""

    RETRY = "retry"
    FALL_BACK = "fall_back"
    RELOAD = "reload"
    RESET = "reset"
    UNLOAD = "unload"


@dataclass(frozen=True, slots=True)
class RecoveryEvent:
    """One attempt at recovery, for the telemetry."""

    layer_id: str
    seed_id: int
    kernel_id: str
    error_type: str
    message: str
    strategy: str
    success: bool
    recovery_time_ms: float


class ErrorRecovery:
    """Decides and carries out recovery; shared by the layers of a model. Callbacks run in the training thread.

    on_event: gets each RecoveryEvent. on_replaced: gets the parameters whose values were replaced, so that the
    optimiser forgets what it knew of them. source: pristine parameters of a kernel id (the kernel cache).
    """

    def __init__(
        self,
        *,
        max_errors: int = 3,
        forgive_after: int = 1000,
        quarantine_steps: int = 200,
        on_event: Callable[[RecoveryEvent], None] | None = None,
        on_replaced: Callable[[Iterable[nn.Parameter]], None] | None = None,
        source: Callable[[str], Mapping[str, Tensor]] | None = None,
    ) -> None: ...

    def recover(
        self, layer_id: str, seed: Seed, error: Exception, attempt: Callable[[], Tensor]
    ) -> Tensor | None:
        """A good delta if the kernel could be brought back within this step, else None: bypass it."""
