"""Keep averaged weights in step with a model that grows."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from dataclasses import replace

from torch import Tensor, nn

from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.schemas.errors import ConfigurationError

__all__ = ["WeightFollower"]


class WeightFollower:
    """Gives averaged weights the kernels that their model has: one that joins starts at its present values.

    The average covers kernels as any other weight, whether it pairs parameters by position (`AveragedModel`, most
    moving averages) or by name. A kernel's share of the output (its ramp) is that of the model.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
        >>> from tamiyo.host import attach
        >>> from tamiyo.host.adaptation.weight_following import WeightFollower
        >>> from tamiyo.host.testing import MemoryTransport
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> transport = MemoryTransport()
        >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=transport)
        >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        >>> follower = WeightFollower(model, averaged)
        >>> _ = transport.decide("load_kernel", layer="0", blueprint="bottleneck")
        >>> for _ in range(2):
        ...     loss = model(torch.randn(16, 4)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     handle.step(loss=loss)
        ...     follower.update()
        ...     averaged.update_parameters(model)
        >>> len(list(averaged.parameters())) == len(list(model.parameters())) == 8
        True
        >>> handle.close()
    """

    def __init__(self, model: nn.Module, averaged: nn.Module | MutableMapping[str, Tensor]) -> None:
        """Bring the averaged weights up to date.

        Args:
            model: The attached model.
            averaged: A copy of it, or a module that contains one, such as an `AveragedModel`, made after `attach`; or
                averages by the names of `model.named_parameters()`, in tensors of the parameters' shapes.

        Raises:
            ConfigurationError: The copy lacks layers of the model: it was made before `attach`, or of another model.
        """
        self._model = model
        self._averaged = averaged
        self._names: dict[str, str] = {}
        self._layers = attached_layers(model)
        self._copies: dict[str, KasminaLayer] = {}
        if isinstance(averaged, nn.Module):
            self._copies = attached_layers(averaged)
            missing = sorted(set(self._layers) - set(self._copies))
            if missing or not self._layers:
                raise ConfigurationError(
                    f"the averaged model lacks the attached layers {', '.join(missing) or '(there are none)'}: make "
                    "the copy of the model after attach"
                )
        self.update()

    def update(self) -> None:
        """Take over what has changed. Call it after `handle.step`, before the next update of the average."""
        if isinstance(self._averaged, nn.Module):
            for layer_id, layer in self._layers.items():
                if len(layer.kernels) or len(self._copies[layer_id].kernels):
                    _mirror(layer, self._copies[layer_id])
        else:
            self._rename(self._averaged)

    def _rename(self, averages: MutableMapping[str, Tensor]) -> None:
        kernels = {
            id(parameter): f"{layer_id} {seed.kernel_id} {seed.total_errors}"
            for layer_id, layer in self._layers.items()
            for seed in layer.seeds
            if seed.kernel is not None
            for parameter in seed.kernel.parameters()
        }
        if not kernels and not self._names:
            return
        parameters = {name: p for name, p in self._model.named_parameters() if id(p) in kernels}
        for name in self._names:
            if name not in parameters:
                averages.pop(name, None)
        for name, parameter in parameters.items():
            if self._names.get(name) != kernels[id(parameter)]:
                averages[name] = parameter.detach().clone()
        self._names = {name: kernels[id(parameter)] for name, parameter in parameters.items()}


def attached_layers(model: nn.Module) -> dict[str, KasminaLayer]:
    """Return the layers of an attached model, or of a copy of one, by layer_id."""
    return {module.layer_id: module for module in model.modules() if isinstance(module, KasminaLayer)}


def _mirror(layer: KasminaLayer, twin: KasminaLayer) -> None:
    """Give the copy of a layer the layer's seeds; kernels that both have keep the copy's parameters."""
    weight = next(twin.base.parameters())
    for index, (seed, own) in enumerate(zip(layer.seeds, twin.seeds, strict=True)):
        kernel = own.kernel
        # The parameters of a kernel that failed may have been replaced, and its average may not be finite.
        if own.kernel_id != seed.kernel_id or own.total_errors != seed.total_errors:
            kernel = copy.deepcopy(seed.kernel)
            if kernel is not None:
                kernel = kernel.to(device=weight.device, dtype=weight.dtype).train(twin.training)
                kernel.requires_grad_(weight.requires_grad)
        twin.seeds[index] = replace(seed, kernel=kernel, snapshot=None)
    if any(twin.kernels[key] is not twin.seeds[int(key)].kernel for key in twin.kernels) or (
        list(twin.kernels) != list(layer.kernels)
    ):
        # In the layer's order, since averages pair parameters by position.
        twin.kernels.clear()
        for key in layer.kernels:
            loaded = twin.seeds[int(key)].kernel
            assert loaded is not None
            twin.kernels[key] = loaded
    twin._refresh()
