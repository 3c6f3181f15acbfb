"""A model whose layers carry seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tamiyo.host._common import clock
from tamiyo.host._common.compiled import recompile
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.grown_kernels import GrownKernels, without_kernels
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.later_wrappers import expect_wrapper, forget_wrapper
from tamiyo.host._layers.recovery import ErrorRecovery
from tamiyo.host._layers.selection import Selection
from tamiyo.host._layers.unwrapping import refusal
from tamiyo.host._topology.topology import topology, trainable
from tamiyo.host._topology.tracing import Example, edges
from tamiyo.schemas.errors import KernelError
from tamiyo.schemas.telemetry import ModelTopology


class AttachedModel:
    """The watched layers of a model and what they have grown.

    The user's modules stay in place. `refresh` must follow every change of the kernels; between two changes the values
    below are constant, so that a step does not have to visit the layers that have not grown.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        *,
        num_seeds: int,
        ramp_steps: int,
        recovery: ErrorRecovery,
        cache: KernelCache,
    ) -> None:
        """Make the layers' companions; the model itself stays as it is until `connect`."""
        self.model = model
        self.recovery = recovery
        self.base_parameters = trainable(model)
        """Trainable numbers of the network as it was attached."""
        self.layers: dict[str, KasminaLayer] = {
            layer_id: KasminaLayer(
                each.module,
                layer_id=layer_id,
                num_seeds=num_seeds,
                ramp_steps=ramp_steps,
                spec=each.spec,
                recovery=recovery,
                cache=cache,
                in_place=True,
            )
            for layer_id, each in selection.layers.items()
        }
        self.kernels = GrownKernels({each.name: self.layers[layer_id] for layer_id, each in selection.layers.items()})
        self.grown: tuple[KasminaLayer, ...] = ()
        """Layers with at least one kernel."""
        self.trained: tuple[nn.Parameter, ...] = ()
        """The kernels' parameters."""
        self.kernel_parameters = 0
        """Trainable numbers of all kernels."""
        self.revision = 0
        """Rises with every change of the kernels."""
        self._known_changes = self.kernels.changes
        self._num_seeds = num_seeds
        self.left_alone = selection.left_alone
        """Why the other layers that could carry kernels are not watched, by name."""

    def topology(
        self,
        run_id: str,
        selection: Selection,
        settings: HostSettings,
        *,
        protected: Collection[str],
        task: str,
        planned_steps: int | None,
    ) -> ModelTopology:
        """Return the record that describes the network to the pipeline; it traces the model."""
        budget = settings.parameter_budget
        if budget is None:
            budget = int(settings.parameter_budget_ratio * self.base_parameters)
        return topology(
            run_id,
            {layer_id: each.spec for layer_id, each in selection.layers.items()},
            {layer_id: layer.base_parameters for layer_id, layer in self.layers.items()},
            edges(
                self.model,
                {layer_id: each.module for layer_id, each in selection.layers.items()},
                list(selection.layers),
            ),
            num_seeds=self._num_seeds,
            protected=protected,
            time_ms=clock.time_ms(),
            task=task,
            total_parameters=self.base_parameters,
            parameter_budget=budget,
            cooldown_steps=settings.cooldown_steps,
            planned_steps=planned_steps,
        )

    def connect(self, example: Example, ranks: tuple[int, ...] = ()) -> None:
        """Let the kernels be part of the model.

        Args:
            example: What the model runs on.
            ranks: Global ranks of the processes that train it together; empty for one alone.

        Raises:
            ConfigurationError: The model has no room for them.
        """
        self.kernels.place(self.model, example)
        expect_wrapper(self.kernels, ranks)

    def obstacle(self, layer: KasminaLayer) -> str:
        """Return why a layer cannot grow since the user has changed the model; empty if it can."""
        modules = list(self.model.modules())
        for module in modules:
            reason = refusal(module)
            if reason is not None:
                return f"the model has become a {type(module).__name__}: {reason}"
        if not any(layer.base is module for module in modules):
            return f"the model no longer has the module of layer {layer.layer_id}"
        return ""

    def keep_kernels(self) -> None:
        """Register the kernels anew if the user has replaced the module that held them."""
        if not self.kernels.placed(self.model):
            self.kernels.remove()
            self.kernels.place(self.model)
            self.revision += 1
            recompile()

    def release(self) -> None:
        """Leave the model, unless kernels have grown."""
        self.refresh()
        forget_wrapper(self.kernels, grown=bool(self.grown))
        self.kernels.ended = True
        if not self.grown:
            for layer in self.layers.values():
                layer.disconnect()
            self.kernels.remove()

    @property
    def outdated(self) -> bool:
        """Whether kernels have joined or left since `refresh`, such as by a state dict that the user has loaded."""
        return self.kernels.changes != self._known_changes

    def refresh(self) -> None:
        """Update `grown`, `kernel_parameters` and `revision` after a change of the kernels."""
        self.keep_kernels()
        self.grown = tuple(layer for layer in self.layers.values() if len(layer.kernels))
        self.trained = tuple(p for layer in self.grown for p in layer.kernels.parameters())
        self.kernel_parameters = sum(layer.kernel_parameters for layer in self.grown)
        self.revision += 1
        self._known_changes = self.kernels.changes
        recompile()

    def require_loadable(self, saved: Mapping[str, Any]) -> None:
        """Return if `saved` is a state of this network, whatever has grown. Raises KernelError if not."""
        if not isinstance(saved, Mapping):
            raise KernelError(f"expected a state dict of the model, got {type(saved).__name__}")
        own, given = (
            {name: getattr(value, "shape", None) for name, value in without_kernels(state).items()}
            for state in (self.state_dict(), saved)
        )
        if own != given:
            different = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            raise KernelError(f"the saved state is of another network: {', '.join(different[:5])} differ")

    def state_dict(self) -> dict[str, Any]:
        """Return the model's state, kernels included, by the names of its parameters and buffers.

        A model's own `state_dict` may leave some out, or return them under other names.
        """
        return nn.Module.state_dict(self.model)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load the model's state, kernels included. Raises KernelError if it does not fit."""
        try:
            nn.Module.load_state_dict(self.model, saved)
        except RuntimeError as error:
            raise KernelError(f"the saved state does not fit: {error}") from error

    def defer_errors(self) -> None:
        """Let `check_kernels` find every kernel whose values are not finite, on any device.

        The ranks of a distributed run bypass such a kernel together, not each where its own batch made it fail.
        """
        for layer in self.layers.values():
            layer.defer_errors()

    def check_kernels(self, combine: Callable[[Tensor], Tensor] = Tensor.cpu) -> None:
        """Find kernels that have failed where reading their values at once would have waited for the device.

        Args:
            combine: Returns the numbers of failed passes on the CPU, [kernels], from those of this process.
        """
        guarded = [
            (layer, seed, seed.guard)
            for layer in self.grown
            if layer.deferred
            for seed in layer.seeds
            if seed.guard is not None
        ]
        if not guarded:
            return
        failures = combine(torch.stack([guard.take() for _, _, guard in guarded])).tolist()
        for (layer, seed, _), count in zip(guarded, failures, strict=True):
            if count:
                layer.bypass(seed, int(count))
