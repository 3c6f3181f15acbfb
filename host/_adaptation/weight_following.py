"""Keep averaged weights in step with a model that grows."""

from __future__ import annotations

from collections.abc import MutableMapping

from torch import Tensor, nn

from tamiyo.host._layers.grown_kernels import kernels_of
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
        >>> from tamiyo.host.testing import MemoryTransport
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> transport = MemoryTransport()
        >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=transport)
        >>> averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        >>> handle.follow(averaged)
        >>> _ = transport.decide("load_kernel", layer="0", blueprint="bottleneck")
        >>> for _ in range(2):
        ...     loss = model(torch.randn(16, 4)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     handle.step(loss=loss)
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
        kernels, copies = kernels_of(model), kernels_of(averaged) if isinstance(averaged, nn.Module) else None
        if kernels is None:
            raise ConfigurationError("the model is not attached: attach it first")
        if isinstance(averaged, nn.Module) and (copies is None or copies.layers.keys() != kernels.layers.keys()):
            raise ConfigurationError(
                "the averaged model is no copy of the attached one: make it of the model after attach"
            )
        self._kernels = kernels
        self._copies = copies
        self.update()

    def update(self) -> None:
        """Take over what has changed. Call it after `handle.step`, before the next update of the average."""
        if self._copies is not None:
            self._copies.mirror(self._kernels)
        elif not isinstance(self._averaged, nn.Module):
            self._rename(self._averaged)

    def _rename(self, averages: MutableMapping[str, Tensor]) -> None:
        kernels = {
            id(parameter): f"{layer.layer_id} {seed.kernel_id} {seed.total_errors}"
            for layer in self._kernels.layers.values()
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
