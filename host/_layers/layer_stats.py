"""A layer's counters, and the statistics that the specification names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.seed import Seed, SeedState


@dataclass(slots=True)
class Performance:
    """Counters since construction. Latency is the wall-clock time of the forward call, on a GPU of its launch only."""

    total_executions: int = 0
    kernel_executions: int = 0
    errors: int = 0
    timed: int = 0
    total_latency_ms: float = 0.0
    last_latency_ms: float = 0.0


def layer_stats(
    layer_id: str,
    seeds: Sequence[Seed],
    performance: Performance,
    cache: KernelCache | None,
    base_parameters: int,
    kernel_parameters: int,
) -> dict[str, Any]:
    """Return the dict of `KasminaLayer.get_layer_stats`."""
    states = Counter(seed.state for seed in seeds)
    attempts = performance.kernel_executions + performance.errors
    timed = performance.timed
    return {
        "layer_id": layer_id,
        "state_stats": {
            "num_seeds": len(seeds),
            "dormant_seeds": states[SeedState.DORMANT],
            "loading_seeds": states[SeedState.LOADING],
            "active_seeds": states[SeedState.LOADING] + states[SeedState.ACTIVE],
            "error_recovery_seeds": states[SeedState.ERROR_RECOVERY],
            "fossilized_seeds": states[SeedState.FOSSILIZED],
        },
        "performance": {
            "total_executions": performance.total_executions,
            "kernel_executions": performance.kernel_executions,
            "errors": performance.errors,
            "error_rate": performance.errors / max(attempts, 1),
            "average_latency_ms": performance.total_latency_ms / timed if timed else None,
            "last_latency_ms": performance.last_latency_ms if timed else None,
        },
        "cache": {} if cache is None else asdict(cache.stats()) | {"hit_rate": cache.stats().hit_rate},
        "parameters": {"base": base_parameters, "kernels": kernel_parameters},
        "seeds": [_describe(seed) for seed in seeds if seed.loaded],
    }


def _describe(seed: Seed) -> dict[str, Any]:
    return {
        "seed_id": seed.index,
        "state": seed.state.value,
        "kernel_id": seed.kernel_id,
        "blueprint": seed.blueprint,
        "alpha": seed.alpha,
        "unloading": seed.unloading,
        "loaded_step": seed.loaded_step,
        "executions": seed.executions,
        "errors": seed.total_errors,
        "parameters": seed.kernel.parameter_count if seed.kernel is not None else 0,
    }
