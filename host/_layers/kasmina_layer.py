"""KasminaLayer: a layer with seeds, the slots in which kernels grow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host._common import clock
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.delta_guard import DeltaGuard
from tamiyo.host._layers.in_place import InPlaceHooks
from tamiyo.host._layers.kernel_output import checked_delta, is_finite, traced_output
from tamiyo.host._layers.layer_state import pack, unpack
from tamiyo.host._layers.layer_stats import Performance, layer_stats
from tamiyo.host._layers.recovery import ErrorRecovery
from tamiyo.host._layers.seed import RAMP_STEPS, Seed, SeedState
from tamiyo.host.blueprints import Kernel
from tamiyo.host.blueprints._base import PRESERVING
from tamiyo.host.blueprints._layer_kinds import run_layer
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.errors import KernelError, KernelIncompatible

KERNELS = "tamiyo_kernels"
"""Name under which a model's kernels are registered at its last module."""

Observer = Callable[["KasminaLayer", Tensor, Tensor, float], None]
"""Called with (layer, input, output, latency_ms) after a forward pass of a sampled step."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A kernel that has left its seed; its parameters must leave the optimiser."""

    seed_index: int
    kernel_id: str
    kernel: Kernel


class KasminaLayer(nn.Module):
    """A Linear, Conv1d or Conv2d with seeds: output = base(x) + sum over live seeds of alpha * kernel(x, base(x)).

    Every kernel receives the base's own output, so gating one off changes no other. Attributes that this class lacks
    (`weight`, `in_features`) are those of the base.

    Alone, it wraps the base: call it instead of the base. `in_place`, the base stays where it is in a model, and a
    forward hook on it adds the deltas; the hook is there only while a kernel is live or an observer watches, so that a
    layer without both is the user's own module and nothing else.
    """

    base: nn.Module
    kernels: nn.ModuleDict
    observer: Observer | None
    on_change: Callable[[KasminaLayer], None] | None
    """Called after a kernel has joined or left."""

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
        in_place: bool = False,
    ) -> None:
        """Wrap a module, or build a Linear.

        Args:
            base: The module to wrap; None: Linear(input_size, output_size).
            layer_id: Name of the layer in records and messages.
            input_size: Inputs of the Linear.
            output_size: Outputs of the Linear.
            num_seeds: Kernels that the layer can carry at once.
            telemetry_enabled: Whether forward passes are timed even if no kernel has grown.
            ramp_steps: Steps over which a kernel's alpha rises from 0 to 1, or falls.
            spec: Geometry of the layer; None: found at the first forward pass.
            recovery: Handles errors of kernels; several layers may share one.
            cache: Source of the cache counts in `get_layer_stats`.
            in_place: Whether `base` keeps its place in a model, and this module acts through hooks on it.

        Raises:
            KernelError: Neither `base` nor both sizes are given.
        """
        super().__init__()
        if base is None:
            if input_size is None or output_size is None:
                raise KernelError("a KasminaLayer needs a base module, or input_size and output_size")
            base = nn.Linear(input_size, output_size)
            spec = spec or LayerSpec.of(layer_id, base, torch.zeros(1, input_size))
        if in_place:
            object.__setattr__(self, "base", base)  # no child: the model has it already
        else:
            self.base = base
        self.kernels = nn.ModuleDict()
        self.layer_id = layer_id
        self.telemetry_enabled = telemetry_enabled
        self.seeds = [Seed(index, ramp_steps) for index in range(num_seeds)]
        self.performance = Performance()
        self.recovery = recovery or ErrorRecovery()
        self.cache = cache
        self.observer = None
        self._spec = spec
        self._seen: torch.Size | None = None
        self._live: tuple[Seed, ...] = ()
        self._isolated = False
        self.hooks = InPlaceHooks(base, self._pass, self._traced, self._observed) if in_place else None
        """Those on a base in place; None: this module wraps the base."""
        self._deferred = False
        self.on_change = None
        self.train(base.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("base") or self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
            return getattr(base, name)

    def __getstate__(self) -> dict[str, Any]:
        # An observer and a cache refer to threads and clients, which a copy of the model must not include.
        return self.__dict__ | {"observer": None, "cache": None}

    def extra_repr(self) -> str:
        loaded = ", ".join(f"{s.index}: {s.blueprint} {s.state}" for s in self.seeds if s.loaded)
        return f"layer_id={self.layer_id!r}, num_seeds={len(self.seeds)}, loaded={{{loaded}}}"

    @property
    def spec(self) -> LayerSpec:
        """Geometry of the layer. Raises KernelError before the first forward pass if none was given."""
        if self._spec is None:
            if self._seen is None:
                raise KernelError(f"layer {self.layer_id!r} has no input shape yet: run a forward pass, or pass spec=")
            self._spec = LayerSpec.of(self.layer_id, self.base, torch.zeros(1).expand(self._seen))
        return self._spec

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the base's parameters, and none of a kernel: a model's kernels are registered at its last module."""
        base = self.base
        if not base._modules.keys() - {KERNELS} and type(base).named_parameters is nn.Module.named_parameters:
            yield from {id(p): p for p in base._parameters.values() if p is not None}.values()
            return
        for name, parameter in base.named_parameters():
            if KERNELS not in name.split("."):
                yield parameter

    @property
    def grown(self) -> bool:
        """Whether a kernel is loaded, live or bypassed."""
        return bool(self.kernels._modules)

    @property
    def base_parameters(self) -> int:
        """Number of parameters of the wrapped module."""
        return sum(p.numel() for p in self.own_parameters())

    @property
    def kernel_parameters(self) -> int:
        """Number of parameters of all kernels, live or bypassed."""
        return sum(p.numel() for p in self.kernels.parameters())

    def forward(self, input: Tensor) -> Tensor:
        """Return the base's output plus the deltas of the live kernels."""
        if self.hooks is not None:
            return run_layer(self.base, input)
        performance, observer, live = self.performance, self.observer, self._live
        performance.total_executions += 1
        if self._seen is None:
            self._seen = input.shape
        base = self._modules["base"]  # `self.base` would take two Python calls of __getattr__
        assert base is not None
        if not (live or self.telemetry_enabled or observer):
            plain: Tensor = base(input)
            return plain
        started = clock.seconds()
        output: Tensor = base(input)
        if live:
            output = self._grown(live, input, output)
        latency_ms = (clock.seconds() - started) * 1e3
        self._time(latency_ms)
        if observer is not None:
            observer(self, input, output, latency_ms)
        return output

    def connect(self) -> None:
        """Put the hooks that are needed now on a base in place, and remove the others."""
        if self.hooks is not None:
            self.hooks.connect(grown=bool(self._live), observed=self.observer is not None)

    def disconnect(self) -> None:
        """Remove the hooks from a base in place."""
        if self.hooks is not None:
            self.hooks.disconnect()

    def reconnect(self) -> None:
        """Put the hooks on the base of a copy that was made without them."""
        if self.hooks is not None:
            self.hooks.forget()
        self.connect()

    def _pass(self, input: Tensor, output: Tensor) -> Tensor:
        self.performance.total_executions += 1
        return self._grown(self._live, input, output) if self._live else output

    def _traced(self, input: Tensor, output: Tensor) -> Tensor:
        return traced_output(self._live, input.clone() if self._isolated else input, output)

    def _observed(self, input: Tensor, output: Tensor, latency_ms: float) -> None:
        self._time(latency_ms)
        if self.observer is not None:
            self.observer(self, input, output, latency_ms)

    def _time(self, latency_ms: float) -> None:
        performance = self.performance
        performance.timed += 1
        performance.total_latency_ms += latency_ms
        performance.last_latency_ms = latency_ms

    def _grown(self, live: tuple[Seed, ...], input: Tensor, output: Tensor) -> Tensor:
        """Return `output` plus the deltas of the live kernels; a kernel that fails is left to the recovery."""
        grown = output
        deferred = self.deferred
        if self._isolated:
            input = input.clone()
        for seed in live:
            try:
                delta: Tensor | None = checked_delta(seed, input, output, deferred)
            except Exception as error:  # training comes first: it continues without the kernel
                if type(error).__module__ == "torch.utils.checkpoint":
                    raise  # activation checkpointing ends its repeated pass early by an error of its own
                if not is_finite(input) or not is_finite(output):
                    continue  # the network itself has diverged: not an error of the kernel
                self.performance.errors += 1
                retry = partial(checked_delta, seed, input, output, deferred)
                delta = self.recovery.recover(self.layer_id, seed, error, retry)
                self._refresh()
            if delta is not None:
                self.performance.kernel_executions += 1
                self.recovery.succeeded(seed)
                grown = grown + delta if seed.alpha == 1.0 else grown + seed.alpha * delta
        return grown

    def load_kernel(
        self, kernel: Kernel, *, kernel_id: str, blueprint: str, step: int, seed_index: int | None = None
    ) -> int:
        """Load a kernel into a seed; the layer's output does not change.

        Args:
            kernel: A fresh kernel, whose delta is zero; it is moved to the layer's device and dtype.
            kernel_id: Name of the kernel in the store.
            blueprint: Name of its blueprint.
            step: Current training step; the ramp starts here.
            seed_index: Index of the seed; None: the first dormant one.

        Returns:
            The index of the seed.

        Raises:
            KernelIncompatible: The kernel cannot run at this layer.
            KernelError: No seed is dormant, or the kernel would change the output by more than 1e-6.
        """
        if seed_index is None:
            free = [s.index for s in self.seeds if s.state is SeedState.DORMANT]
            if not free:
                raise KernelError(f"layer {self.layer_id!r} has no dormant seed among its {len(self.seeds)}")
            seed_index = free[0]
        seed = self._seed(seed_index)
        if seed.loaded:
            raise KernelError(
                f"seed {seed_index} of layer {self.layer_id!r} carries kernel {seed.kernel_id}: unload it first"
            )
        weight = next(self.base.parameters())
        kernel = kernel.to(device=weight.device, dtype=weight.dtype).train(self.training)
        self._check(kernel, kernel_id, weight)
        seed.load(kernel, kernel_id=kernel_id, blueprint=blueprint, step=step)
        self.kernels[str(seed_index)] = kernel
        self._refresh()
        self._changed()
        return seed_index

    def _check(self, kernel: Kernel, kernel_id: str, weight: Tensor) -> None:
        """Raise KernelError or KernelIncompatible unless the kernel runs here and leaves the output unchanged."""
        layer_input, layer_output = (t.to(weight) for t in self.spec.sample(generator=torch.Generator().manual_seed(0)))
        try:
            with torch.no_grad():
                delta = kernel(layer_input, layer_output)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise KernelIncompatible(f"kernel {kernel_id} cannot run at layer {self.layer_id!r}: {error}") from error
        if not isinstance(delta, Tensor) or delta.shape != layer_output.shape:
            raise KernelIncompatible(
                f"kernel {kernel_id} returns shape {tuple(getattr(delta, 'shape', ()))}, "
                f"layer {self.layer_id!r} returns {tuple(layer_output.shape)}"
            )
        largest = float(delta.abs().max())
        if not largest < PRESERVING:
            raise KernelError(
                f"kernel {kernel_id} would change the output of layer {self.layer_id!r} by {largest:.3g}, "
                f"at most {PRESERVING} is allowed"
            )

    def unload(self, seed_index: int | None = None) -> int:
        """Start to ramp a kernel down; `advance` drops it at the end of the ramp.

        Args:
            seed_index: Index of the seed; None: the newest kernel that can be unloaded.

        Returns:
            The index of the seed.

        Raises:
            KernelError: There is no such kernel, or it is FOSSILIZED.
        """
        seed = self._chosen(seed_index, "unload", lambda s: s.loaded and not (s.permanent or s.unloading))
        seed.unload()
        self._refresh()
        return seed.index

    def fossilize(self, seed_index: int | None = None) -> int:
        """Make an ACTIVE kernel permanent.

        Args:
            seed_index: Index of the seed; None: the newest ACTIVE kernel.

        Returns:
            The index of the seed.

        Raises:
            KernelError: There is no such kernel, or it is not ACTIVE.
        """
        seed = self._chosen(seed_index, "make permanent", lambda s: s.state is SeedState.ACTIVE and not s.unloading)
        seed.fossilize()
        return seed.index

    def advance(self, step: int) -> list[Dropped]:
        """Between steps: advance the ramps, repair kernels, end quarantines; return the dropped kernels."""
        dropped = []
        for seed in self.seeds:
            if seed.kernel is None:
                continue
            self.recovery.maintain(self.layer_id, seed, step)
            if seed.advance(step):
                kernel_id, kernel = seed.kernel_id, seed.clear()
                del self.kernels[str(seed.index)]
                dropped.append(Dropped(seed.index, kernel_id, kernel))
            self._refresh()
        if dropped:
            self._changed()
        return dropped

    def clear(self) -> None:
        """Drop all kernels at once, whatever their state."""
        for seed in self.seeds:
            if seed.loaded:
                seed.clear()
        self.kernels.clear()
        self._refresh()
        self._changed()

    def observe(self, observer: Observer | None) -> None:
        """Call `observer` after every forward pass from now on; None: stop."""
        # nn.Module's own __setattr__ would check for parameters, buffers and modules at every sampled step.
        object.__setattr__(self, "observer", observer)
        self.connect()

    @contextmanager
    def gated_off(self, seed_index: int) -> Iterator[None]:
        """Leave a kernel out of the output inside the context, for the counterfactual; not for a training step."""
        seed = self._seed(seed_index)
        before, seed.gated = seed.gated, True
        self._refresh()
        try:
            yield
        finally:
            seed.gated = before
            self._refresh()

    def _seed(self, index: int) -> Seed:
        if not 0 <= index < len(self.seeds):
            raise KernelError(f"layer {self.layer_id!r} has seeds 0..{len(self.seeds) - 1}, got {index}")
        return self.seeds[index]

    def _chosen(self, index: int | None, purpose: str, eligible: Callable[[Seed], bool]) -> Seed:
        """Return the seed at `index`, or the newest eligible one. Raises KernelError if there is none."""
        if index is not None:
            return self._seed(index)
        candidates = [seed for seed in self.seeds if eligible(seed)]
        if not candidates:
            raise KernelError(f"layer {self.layer_id!r} has no kernel to {purpose}")
        return max(candidates, key=lambda seed: (seed.loaded_step, seed.index))

    @property
    def deferred(self) -> bool:
        """Whether errors of kernels are found between steps, by `check`, because reading a value would wait."""
        return self._deferred or next(self.base.parameters()).device.type != "cpu"

    def defer_errors(self) -> None:
        """Leave kernels whose values are not finite to their guards, whatever the device."""
        self._deferred = True

    def bypass(self, seed: Seed, failures: int) -> None:
        """Leave a kernel to the recovery whose guard has seen failures, unless the network itself has diverged."""
        if all(map(is_finite, self.own_parameters())):
            self.performance.errors += failures
            error = FloatingPointError(f"kernel {seed.kernel_id} returned values that are not finite")
            self.recovery.recover(self.layer_id, seed, error)
            self._refresh()

    def drop(self, seed_index: int) -> Kernel:
        """Drop a kernel at once and return it. Raises KernelError if there is none."""
        kernel = self._seed(seed_index).clear()
        del self.kernels[str(seed_index)]
        self._refresh()
        self._changed()
        return kernel

    def _refresh(self) -> None:
        self._live = tuple(seed for seed in self.seeds if seed.live)
        # Without a gradient for its weight a layer does not need its input any more, so the loop may change it in
        # place; its kernels do need it.
        self._isolated = bool(self._live) and not all(p.requires_grad for p in self.own_parameters())
        weight = next(self.base.parameters())
        for seed in self._live:
            if seed.guard is None or seed.guard.device != weight.device:
                seed.guard = DeltaGuard(weight)
                if self.deferred and seed.kernel is not None:
                    seed.guard.watch(seed.kernel.parameters())
            seed.guard.set_alpha(seed.alpha)
        self.connect()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self)

    def take_over(self, former: KasminaLayer) -> None:
        """Continue with the kernels, the same modules, that an earlier run's companion of this base has.

        Args:
            former: It has at most as many seeds. Its steps are another run's: this one begins at 0.
        """
        for seed in former.seeds:
            if seed.kernel is not None:
                if seed.guard is not None:
                    seed.guard.release()
                self.seeds[seed.index] = replace(
                    seed, guard=None, loaded_step=0, step=0, quarantined_step=0, snapshot_step=0
                )
                self.kernels[str(seed.index)] = seed.kernel
        self._refresh()
        self._changed()

    def mirror(self, original: KasminaLayer) -> None:
        """Take over the seeds of the layer that this one is a copy of; kernels that both have keep their parameters.

        Args:
            original: A layer with as many seeds; it stays as it is.
        """
        weight = next(self.base.parameters())
        for index, (theirs, own) in enumerate(zip(original.seeds, self.seeds, strict=True)):
            kernel = own.kernel
            # The parameters of a kernel that failed may have been replaced, and its average may not be finite.
            if own.kernel_id != theirs.kernel_id or own.total_errors != theirs.total_errors:
                kernel = copy.deepcopy(theirs.kernel)
                if kernel is not None:
                    kernel = kernel.to(device=weight.device, dtype=weight.dtype).train(self.training)
                    kernel.requires_grad_(weight.requires_grad)
            self.seeds[index] = replace(theirs, kernel=kernel, snapshots=(), guard=None)
        loaded = {str(seed.index): seed.kernel for seed in self.seeds if seed.kernel is not None}
        kernels = {key: loaded[key] for key in original.kernels}
        if list(self.kernels) != list(kernels) or any(self.kernels[key] is not each for key, each in kernels.items()):
            self.kernels.clear()
            self.kernels.update(kernels)
            self._changed()
        self._refresh()

    def get_layer_stats(self) -> dict[str, Any]:
        """Return the layer's statistics.

        Returns:
            A dict of `state_stats` (num_seeds, dormant_seeds, loading_seeds, active_seeds, error_recovery_seeds,
            fossilized_seeds), `performance` (total_executions, kernel_executions, errors, error_rate,
            average_latency_ms, last_latency_ms), `cache` (hits, misses, evictions, hit_rate, ...), `parameters` (base,
            kernels) and `seeds` (one dict per loaded seed). active_seeds counts kernels that contribute to the output
            and can still be unloaded, loading_seeds those of them that ramp up. Latencies are None before the first
            timed forward pass.
        """
        return layer_stats(
            self.layer_id, self.seeds, self.performance, self.cache, self.base_parameters, self.kernel_parameters
        )

    def get_extra_state(self) -> Tensor:
        """Return the seeds' state as JSON in a uint8 tensor, so that every value of a state dict is a tensor."""
        return pack(self.spec if any(seed.loaded for seed in self.seeds) else None, self.seeds)

    def set_extra_state(self, state: Tensor) -> None:
        """Rebuild the seeds' kernels in place of the current ones; torch then loads their parameters.

        Create the optimiser, or call `GrowingOptimizer.load_state_dict`, afterwards: it must train the kernels.

        Args:
            state: The result of `get_extra_state`.

        Raises:
            KernelIncompatible: The saved kernels do not fit this layer.
            KernelCorrupt: The state is malformed.
        """
        saved, spec = unpack(state)
        if spec is not None:
            if self._spec is None and self._seen is None:
                self._spec = spec
            difference = spec.fits(self.spec)
            if difference:
                raise KernelIncompatible(f"saved kernels of layer {self.layer_id!r} do not fit: {difference}")
        weight = next(self.base.parameters())
        for seed in saved:
            self._seed(seed.index)
        # A kernel that is here already keeps its parameters, which an optimiser knows.
        here = {(seed.index, seed.kernel_id): seed.kernel for seed in self.seeds if seed.loaded}
        for seed in self.seeds:
            if seed.loaded:
                seed.clear()
        self.kernels.clear()
        for seed in saved:
            assert seed.kernel is not None
            seed.kernel = here.get((seed.index, seed.kernel_id)) or seed.kernel.to(weight).train(self.training)
            self.seeds[seed.index] = seed
            self.kernels[str(seed.index)] = seed.kernel
        self._refresh()
        self._changed()
