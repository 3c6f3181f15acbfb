"""From a blueprint's name and a layer's spec to a checked kernel in the store."""

from __future__ import annotations

import torch
from torch import Tensor

from tamiyo.host.blueprints import Kernel, blueprint, for_layer, seed_of
from tamiyo.host.blueprints.base import PRESERVING
from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.kernels.store import KernelStore, StoredKernel
from tamiyo.schemas.errors import KernelError, KernelIncompatible


def compile_kernel(
    spec: LayerSpec, blueprint_name: str, kernel_id: str, store: KernelStore, *, parameter_budget: int
) -> StoredKernel:
    """Build, check and store a kernel. The same arguments give the same bytes, on any machine of one torch version.

    Raises KernelError with the reason: no such blueprint, not for this layer (KernelIncompatible), over the budget,
    or a kernel that is not what its blueprint says (shape, finite, function-preserving, able to learn).
    """
    recipe = blueprint(blueprint_name)
    if not recipe.supports(spec):
        raise KernelIncompatible(
            f"{blueprint_name} does not support {spec.type} layer {spec.layer_id!r}: use {', '.join(for_layer(spec))}"
        )
    # before building: the budget is also what keeps a request from filling the memory
    parameters = recipe.parameters(spec)
    if parameters > parameter_budget:
        raise KernelError(
            f"{blueprint_name} at layer {spec.layer_id!r} takes {parameters} parameters, "
            f"the budget is {parameter_budget}"
        )
    kernel = recipe.build(spec, seed=seed_of(kernel_id))
    if kernel.parameter_count != parameters:
        raise KernelError(f"{blueprint_name} built {kernel.parameter_count} parameters, it had announced {parameters}")
    try:
        _check(kernel, spec)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise KernelError(f"{blueprint_name} cannot run at layer {spec.layer_id!r}: {error}") from error
    kernel.zero_grad(set_to_none=True)
    return store.put(kernel_id, kernel, spec, blueprint_name)


def _check(kernel: Kernel, spec: LayerSpec) -> None:
    """Forward in both modes and backward, on a random sample of two."""
    layer_input, layer_output = spec.sample(2, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        delta = kernel.train(training)(layer_input, layer_output)
        _check_delta(delta, layer_output)
    # the gradient of a random projection: what any loss would send back
    direction = torch.randn(layer_output.shape, generator=torch.Generator().manual_seed(1)).to(layer_output.dtype)
    (delta * direction).sum().backward()
    gradients = [p.grad for p in kernel.parameters() if p.grad is not None]
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise KernelError("its gradient on a sample input is not finite")
    if not any(bool(g.any()) for g in gradients):
        raise KernelError("no gradient reaches its parameters: it could never learn")


def _check_delta(delta: Tensor, layer_output: Tensor) -> None:
    if delta.shape != layer_output.shape:
        raise KernelError(f"its delta is {tuple(delta.shape)}, the layer's output {tuple(layer_output.shape)}")
    if not bool(torch.isfinite(delta).all()):
        raise KernelError("its delta on a sample input is not finite")
    largest = float(delta.detach().abs().max())
    if largest >= PRESERVING:
        raise KernelError(f"it moves the output by {largest:.3g} before it has learned anything")
