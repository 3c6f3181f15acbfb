"""Telemetry frames: the measurements of a step, as records."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tamiyo.host._adaptation.executor import Executor
from tamiyo.host._client.transport import Transport
from tamiyo.host._common import clock
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.recovery import RecoveryEvent
from tamiyo.host._layers.seed import SeedState
from tamiyo.host._probes.paired_latency import PairedLatency
from tamiyo.host._probes.probes import Measurements
from tamiyo.host._probes.shadow_twin import TwinResult
from tamiyo.schemas.telemetry import (
    CacheHitRates,
    ErrorRecoveryEvent,
    Frame,
    KernelPerformance,
    LayerHealth,
    ModelPerformance,
)
from tamiyo.schemas.topics import (
    CACHE_HIT_RATES,
    ERROR_RECOVERY,
    KERNEL_PERFORMANCE,
    LAYER_HEALTH,
    MODEL_PERFORMANCE,
    PERIODIC,
)

COMPANIONS = [topic.name for topic in PERIODIC]
"""Topics with a frame for every sampled step."""

HEALTH_COLUMNS = [name for name in LayerHealth.model_fields if name not in Frame.model_fields]


@dataclass(frozen=True, slots=True)
class Moment:
    """The run, step and epoch of a frame."""

    run_id: str
    step: int
    epoch: int

    def header(self, companions: Sequence[str] = (), *, final: bool = False) -> dict[str, Any]:
        """Return the fields that all frames share; `companions` are the topics with a frame of the same step."""
        return {
            "run_id": self.run_id,
            "step": self.step,
            "epoch": self.epoch,
            "time_ms": clock.time_ms(),
            "companions": list(companions),
            "final": final,
        }


class Frames:
    """Publishes an attached run's frames: values are read in the training thread, records are made by the transport."""

    def __init__(
        self,
        layers: Mapping[str, KasminaLayer],
        executor: Executor,
        transport: Transport,
        twins: MutableMapping[str, TwinResult],
    ) -> None:
        """Count executions and errors from now on; the executor has the layers' rates and cache hits.

        Results of shadow twins leave `twins` when they are published.
        """
        self._layers = layers
        self._executor = executor
        self._transport = transport
        self._twins = twins
        self._parameters = {layer_id: layer.base_parameters for layer_id, layer in layers.items()}
        self._executions = dict.fromkeys(layers, 0)
        self._last_step = 0
        self._errors = dict.fromkeys(layers, 0)

    def sampled(
        self,
        moment: Moment,
        measured: Measurements,
        contributions: Mapping[str, float],
        latencies: Mapping[str, PairedLatency],
        model: Mapping[str, Any],
    ) -> None:
        """Publish the frames of a sampled step, one on each periodic topic.

        Args:
            moment: The step.
            measured: Measurements of the layers.
            contributions: Counterfactual by layer_id, nats; only of layers with active kernels.
            latencies: Forward passes with and without kernels by layer_id; empty if they were not measured.
            model: ModelPerformance's own fields.
        """
        header = moment.header(COMPANIONS)
        performance = {**header, **self._performance(measured, moment.step - self._last_step)}
        self._last_step = moment.step
        health = {**header, **self._health(measured, contributions, latencies)}
        self._transport.publish(KERNEL_PERFORMANCE, partial(KernelPerformance, **performance))
        self._transport.publish(LAYER_HEALTH, partial(LayerHealth, **health))
        self._transport.publish(MODEL_PERFORMANCE, partial(ModelPerformance, **header, **model))

    def resume(self, step: int) -> None:
        """Count steps from `step` on."""
        self._last_step = step

    def final(self, moment: Moment, model: Mapping[str, Any]) -> None:
        """Publish the run's last frame on each periodic topic; layers are not measured, so it contains none."""
        header = moment.header(COMPANIONS, final=True)
        columns: dict[str, list[Any]] = {name: [] for name in HEALTH_COLUMNS}
        self._transport.publish(
            KERNEL_PERFORMANCE, partial(KernelPerformance, **header, layer_id=[], execution_latency_ms=[])
        )
        self._transport.publish(LAYER_HEALTH, partial(LayerHealth, **header, **columns))
        self._transport.publish(MODEL_PERFORMANCE, partial(ModelPerformance, **header, **model))

    def cache(self, moment: Moment, cache: KernelCache) -> None:
        """Publish the kernel cache's counts since the run began."""
        stats = cache.stats()
        frame = {
            **moment.header(),
            "hits": stats.hits,
            "misses": stats.misses,
            "evictions": stats.evictions,
            "hit_rate": stats.hit_rate,
            "entries": stats.entries,
            "capacity": cache.capacity,
        }
        self._transport.publish(CACHE_HIT_RATES, partial(CacheHitRates, **frame))

    def error(self, moment: Moment, event: RecoveryEvent) -> None:
        """Publish a kernel's error and the attempt to recover."""
        frame = {
            **moment.header(),
            "layer_id": event.layer_id,
            "seed_id": event.seed_id,
            "kernel_id": event.kernel_id or None,
            "error_type": event.error_type,
            "message": event.message[:2000],
            "strategy": event.strategy,
            "success": event.success,
            "recovery_time_ms": event.recovery_time_ms,
        }
        self._transport.publish(ERROR_RECOVERY, partial(ErrorRecoveryEvent, **frame))

    def _performance(self, measured: Measurements, steps: int) -> dict[str, Any]:
        rows = list(measured.activations.items())
        executions, errors = [], []
        for layer_id, _ in rows:
            counters = self._layers[layer_id].performance
            count = counters.total_executions - self._executions[layer_id]
            # A layer without kernels is seen in the sampled step only.
            executions.append(count if self._layers[layer_id].grown else count * steps)
            errors.append(counters.errors - self._errors[layer_id])
            self._executions[layer_id], self._errors[layer_id] = counters.total_executions, counters.errors
        return {
            "layer_id": [layer_id for layer_id, _ in rows],
            "seed_id": [_newest_seed(self._layers[layer_id]) for layer_id, _ in rows],
            "chunk_id": [0] * len(rows),
            "execution_latency_ms": [row.latency_ms for _, row in rows],
            "cache_hit_rate": [self._executor.hit_rate(layer_id) for layer_id, _ in rows],
            "error_count": errors,
            "total_executions": executions,
            "activation_variance": [row.variance for _, row in rows],
            "dead_neuron_ratio": [row.dead_ratio for _, row in rows],
            "avg_correlation": [row.correlation for _, row in rows],
        }

    def _health(
        self, measured: Measurements, contributions: Mapping[str, float], latencies: Mapping[str, PairedLatency]
    ) -> dict[str, Any]:
        layers, scales = list(measured.learning), self._executor.scales()
        columns: dict[str, list[Any]] = {
            "layer_id": layers,
            "gradient_norm": [row.gradient_norm for row in measured.learning.values()],
            "update_ratio": [row.update_ratio for row in measured.learning.values()],
            "growth_score": list(map(measured.growth.get, layers)),
            "contribution": list(map(contributions.get, layers)),
            "learning_rate_scale": [scales.get(layer_id, 1.0) for layer_id in layers],
            "parameters": [self._parameters[layer_id] for layer_id in layers],
        }
        if latencies:
            paired = list(map(latencies.get, layers))
            columns["kernel_latency_ms"] = [None if each is None else each.kernel_ms for each in paired]
            columns["base_latency_ms"] = [None if each is None else each.base_ms for each in paired]
        if self._twins:
            results = [self._twins.pop(layer_id, None) for layer_id in layers]
            columns["twin_gain"] = [None if each is None else each.gain for each in results]
            columns["twin_steps"] = [None if each is None else each.steps for each in results]
            columns["twin_probability"] = [None if each is None else each.probability for each in results]
        seeds = [_seeds(self._layers[layer_id]) for layer_id in layers]
        columns |= {name: [row[index] for row in seeds] for index, name in enumerate(_SEED_COLUMNS)}
        return columns


_SEED_COLUMNS = (
    "kernel_load", "alpha", "dormant_seeds", "active_seeds", "fossilized_seeds", "error_seeds", "kernel_parameters",
)  # fmt: skip


def _seeds(layer: KasminaLayer) -> tuple[float, ...]:
    """Return a layer's entries of `_SEED_COLUMNS`."""
    if not layer.grown:
        return 0.0, 0.0, len(layer.seeds), 0, 0, 0, 0
    loaded = [seed for seed in layer.seeds if seed.loaded]
    states = [seed.state for seed in layer.seeds]
    return (
        len(loaded) / len(states),
        sum(seed.alpha for seed in loaded) / len(loaded),
        states.count(SeedState.DORMANT),
        states.count(SeedState.LOADING) + states.count(SeedState.ACTIVE),
        states.count(SeedState.FOSSILIZED),
        states.count(SeedState.ERROR_RECOVERY),
        layer.kernel_parameters,
    )


def _newest_seed(layer: KasminaLayer) -> int:
    if not layer.grown:
        return 0
    loaded = [seed for seed in layer.seeds if seed.loaded]
    return max(loaded, key=lambda s: (s.loaded_step, s.index)).index if loaded else 0
