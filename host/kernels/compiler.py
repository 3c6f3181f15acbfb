"""Compile a kernel: build it from its blueprint, check it, store it."""

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
    """Build, check and store a kernel. The same arguments give the same bytes on any machine with one torch version.

    Args:
        spec: Geometry of the layer.
        blueprint_name: What to build.
        kernel_id: Name in the store; it also decides the initial parameters.
        store: Where the kernel goes.
        parameter_budget: Largest number of parameters; checked before anything is built.

    Returns:
        The receipt of the store.

    Raises:
        KernelError: There is no such blueprint, the budget is exceeded, or the kernel is wrong: another shape, values
            that are not finite, an output that changes at once, or no gradient.
        KernelIncompatible: The blueprint does not support the layer.
    """
    recipe = blueprint(blueprint_name)
    if not recipe.supports(spec):
        raise KernelIncompatible(
            f"{blueprint_name} does not support {spec.type} layer {spec.layer_id!r}: use {', '.join(for_layer(spec))}"
        )
    # Before building, so that no request can fill the memory.
    parameters = recipe.parameters(spec)
    if parameters > parameter_budget:
        raise KernelError(
            f"{blueprint_name} at layer {spec.layer_id!r} needs {parameters} parameters, "
            f"the budget is {parameter_budget}"
        )
    kernel = recipe.build(spec, seed=seed_of(kernel_id))
    if kernel.parameter_count != parameters:
        raise KernelError(f"{blueprint_name} built {kernel.parameter_count} parameters, expected {parameters}")
    try:
        _check(kernel, spec)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise KernelError(f"{blueprint_name} cannot run at layer {spec.layer_id!r}: {error}") from error
    kernel.zero_grad(set_to_none=True)
    return store.put(kernel_id, kernel, spec, blueprint_name)


def _check(kernel: Kernel, spec: LayerSpec) -> None:
    """Run forward in both modes and backward, on a random batch of two."""
    layer_input, layer_output = spec.sample(2, generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        delta = kernel.train(training)(layer_input, layer_output)
        _check_delta(delta, layer_output)
    # A random projection of the delta stands for any loss.
    direction = torch.randn(layer_output.shape, generator=torch.Generator().manual_seed(1)).to(layer_output.dtype)
    (delta * direction).sum().backward()
    gradients = [p.grad for p in kernel.parameters() if p.grad is not None]
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise KernelError("the kernel's gradient on a random input is not finite")
    if not any(bool(g.any()) for g in gradients):
        raise KernelError("no gradient reaches the kernel's parameters: it cannot learn")


def _check_delta(delta: Tensor, layer_output: Tensor) -> None:
    """Raise KernelError unless a fresh kernel's delta has the right shape and is practically zero."""
    if delta.shape != layer_output.shape:
        raise KernelError(
            f"the kernel's delta has shape {tuple(delta.shape)}, the layer's output {tuple(layer_output.shape)}"
        )
    if not bool(torch.isfinite(delta).all()):
        raise KernelError("the kernel's delta on a random input is not finite")
    largest = float(delta.detach().abs().max())
    if largest >= PRESERVING:
        raise KernelError(f"the untrained kernel changes the output by {largest:.3g}, at most {PRESERVING} is allowed")
