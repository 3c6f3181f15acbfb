"""KasminaLayer: a layer with seeds that kernels grow in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tamiyo.host.blueprints_base import Kernel
from tamiyo.host.cache import KernelCache
from tamiyo.host.recovery import ErrorRecovery
from tamiyo.host.seeds import RAMP_STEPS, Seed
from tamiyo.host.spec import LayerSpec

Observer = Callable[["KasminaLayer", Tensor, Tensor, float], None]
"""(layer, input, output, latency_ms): called after a forward of a sampled step."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A kernel that has left its seed; its parameters have to leave the optimiser."""

    seed_index: int
    kernel_id: str
    kernel: Kernel


class KasminaLayer(nn.Module):
    """A Linear, Conv1d or Conv2d with `num_seeds` slots; output = base(x) + sum of alpha x kernel(x, base(x)).

    Every kernel sees the base's own output, so gating one off changes no other. Attributes this class lacks are
    read from the base (`weight`, `in_features`).
    """

    base: nn.Module
    layer_id: str
    seeds: list[Seed]
    observer: Observer | None
    """Set on sampled steps only; None costs nothing."""
    recovery: ErrorRecovery
    cache: KernelCache | None
    """Only for `get_layer_stats`."""

    def __init__(
        self,
        base: nn.Module | None = None,
        *,
        layer_id: str = "layer",
        input_size: int | None = None,
        output_size: int | None = None,
        num_seeds: int = 4,
        telemetry_enabled: bool = True,
        ramp_steps: int = RAMP_STEPS,
        spec: LayerSpec | None = None,
        recovery: ErrorRecovery | None = None,
        cache: KernelCache | None = None,
    ) -> None:
        """Wrap `base`, or build Linear(input_size, output_size). Without `spec` the first forward finds it."""
        super().__init__()

    @property
    def spec(self) -> LayerSpec:
        """Raises KernelError before the first forward where none was given."""
        raise NotImplementedError

    @property
    def base_parameters(self) -> int:
        raise NotImplementedError

    @property
    def kernel_parameters(self) -> int:
        raise NotImplementedError

    def load_kernel(
        self, kernel: Kernel, *, kernel_id: str, blueprint: str, step: int, seed_index: int | None = None
    ) -> int:
        """Put a kernel into a seed (the first dormant one); returns its index. The output stays what it was.

        Raises KernelIncompatible where it does not fit, KernelError where no seed is free or it changes the output.
        """
        raise NotImplementedError

    def unload(self, seed_index: int | None = None) -> int:
        """Start ramping a kernel down (the newest, by default); `advance` drops it in the end. Returns its index."""
        raise NotImplementedError

    def fossilize(self, seed_index: int | None = None) -> int:
        """Make an ACTIVE kernel permanent (the newest, by default). Returns its index."""
        raise NotImplementedError

    def advance(self, step: int) -> list[Dropped]:
        """Between steps: move the ramps on, release quarantines, drop what is done. Returns what was dropped."""
        raise NotImplementedError

    @contextmanager
    def gated_off(self, seed_index: int) -> Iterator[None]:
        """Within: the output without this kernel, for the counterfactual. Not for a step that is trained on."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def get_layer_stats(self) -> dict[str, Any]:
        """state_stats {num_seeds, dormant_seeds, loading_seeds, active_seeds, error_recovery_seeds, fossilized_seeds},
        performance {total_executions, kernel_executions, errors, error_rate, average_latency_ms, last_latency_ms},
        cache {hits, misses, evictions, hit_rate}, parameters {base, kernels}, seeds [one dict a loaded seed].

        active_seeds counts the kernels that shape the output and may still be unloaded; loading_seeds of them ramp up.
        """
        raise NotImplementedError
