"""A model whose layers carry seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from tamiyo.host.common import clock
from tamiyo.host.common.settings import HostSettings
from tamiyo.host.kernels.cache import KernelCache
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.recovery import ErrorRecovery
from tamiyo.host.layers.selection import SelectedLayer
from tamiyo.host.topology.topology import topology, trainable
from tamiyo.host.topology.tracing import edges
from tamiyo.schemas.telemetry import ModelTopology


class AttachedModel:
    """The wrapped layers of a model and what they have grown.

    `wrap` and `unwrap` exchange the layers in place. `refresh` must follow every change of the kernels; between two
    changes the values below are constant, so that a step does not have to visit the layers that have not grown.
    """

    def __init__(
        self,
        model: nn.Module,
        selected: Mapping[str, SelectedLayer],
        *,
        num_seeds: int,
        ramp_steps: int,
        recovery: ErrorRecovery,
        cache: KernelCache,
    ) -> None:
        """Make the wrappers; the model itself stays as it is until `wrap`."""
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
            )
            for layer_id, each in selected.items()
        }
        self.grown: tuple[KasminaLayer, ...] = ()
        """Layers with at least one kernel."""
        self.kernel_parameters = 0
        """Trainable numbers of all kernels."""
        self.revision = 0
        """Rises with every change of the kernels."""
        self._num_seeds = num_seeds
        self._selected = selected

    def topology(
        self, run_id: str, settings: HostSettings, *, protected: Collection[str], task: str, planned_steps: int | None
    ) -> ModelTopology:
        """Return the record that describes the network to the pipeline. Call it before `wrap`: it traces the model."""
        budget = settings.parameter_budget
        if budget is None:
            budget = int(settings.parameter_budget_ratio * self.base_parameters)
        return topology(
            run_id,
            {layer_id: each.spec for layer_id, each in self._selected.items()},
            {layer_id: layer.base_parameters for layer_id, layer in self.layers.items()},
            edges(self.model, {layer_id: each.module for layer_id, each in self._selected.items()}, list(self.layers)),
            num_seeds=self._num_seeds,
            protected=protected,
            time_ms=clock.time_ms(),
            task=task,
            total_parameters=self.base_parameters,
            parameter_budget=budget,
            cooldown_steps=settings.cooldown_steps,
            planned_steps=planned_steps,
        )

    def wrap(self) -> None:
        """Put the wrapped layers in place of the model's own."""
        for layer_id, layer in self.layers.items():
            self._put(layer_id, layer)

    def unwrap(self) -> None:
        """Put the model's own layers back, except where kernels have grown."""
        for layer_id, layer in self.layers.items():
            if not len(layer.kernels):
                self._put(layer_id, layer.base)

    def refresh(self) -> None:
        """Update `grown`, `kernel_parameters` and `revision` after a change of the kernels."""
        self.grown = tuple(layer for layer in self.layers.values() if len(layer.kernels))
        self.kernel_parameters = sum(layer.kernel_parameters for layer in self.grown)
        self.revision += 1

    def _put(self, layer_id: str, module: nn.Module) -> None:
        for parent, attribute in self._selected[layer_id].places:
            setattr(parent, attribute, module)
