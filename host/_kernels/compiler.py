"""Compile a kernel: build it from its blueprint, check it, store it."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from tamiyo.host._common import clock
from tamiyo.host._kernels.store import KernelStore, StoredKernel
from tamiyo.host.blueprints import Kernel, blueprint, for_layer, seed_of
from tamiyo.host.blueprints._base import PRESERVING
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, KernelStatus
from tamiyo.schemas.errors import KernelError, KernelIncompatible
from tamiyo.schemas.identity import kernel_id
from tamiyo.schemas.telemetry import ModelTopology

MAX_REASON = 2000  # characters a record's text may have


def compile_decision(decision: AdaptationDecision, topology: ModelTopology, store: KernelStore) -> CompiledKernel:
    """Build, check and store the kernel of a decision.

    Args:
        decision: A `load_kernel` decision.
        topology: The newest topology of its run; its parameter budget is the kernel's limit.
        store: Where the kernel is put.

    Returns:
        The record of the stored kernel.

    Raises:
        KernelError: The kernel cannot or must not be built; the message is the reason, for `refused_kernel`.
    """
    started = clock.seconds()
    if decision.layer_id is None or decision.blueprint is None:
        raise KernelError("a load_kernel decision needs a layer and a blueprint; this one lacks one")
    layer = next((each for each in topology.layers if each.layer_id == decision.layer_id), None)
    if layer is None:
        raise KernelError(f"run {decision.run_id} has no layer {decision.layer_id!r}")
    if layer.protected:
        raise KernelError(f"layer {decision.layer_id!r} is protected")
    try:
        spec = json.loads(layer.spec)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        raise KernelError(f"the spec of layer {decision.layer_id!r} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise KernelError(f"the spec of layer {decision.layer_id!r} is not a JSON object")
    stored = compile_kernel(
        LayerSpec.from_dict(spec),
        decision.blueprint,
        kernel_id(decision.decision_id),
        store,
        parameter_budget=topology.parameter_budget,
    )
    return CompiledKernel(
        run_id=decision.run_id,
        kernel_id=stored.kernel_id,
        decision_id=decision.decision_id,
        layer_id=decision.layer_id,
        blueprint=decision.blueprint,
        status=KernelStatus.COMPILED,
        checksum=stored.checksum,
        size_bytes=stored.size_bytes,
        parameters=stored.parameters,
        compile_time_ms=1000 * (clock.seconds() - started),
    )


def refused_kernel(decision: AdaptationDecision, reason: str) -> CompiledKernel:
    """Return the record of a kernel that was not compiled.

    Args:
        decision: A `load_kernel` decision.
        reason: Why not; cut after MAX_REASON characters.
    """
    return CompiledKernel(
        run_id=decision.run_id,
        kernel_id=kernel_id(decision.decision_id),
        decision_id=decision.decision_id,
        # A decision without a layer or blueprint is refused too, and both columns need a name.
        layer_id=decision.layer_id or "none",
        blueprint=decision.blueprint or "none",
        status=KernelStatus.REFUSED,
        reason=reason[:MAX_REASON],
    )


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
    suitable = for_layer(spec)
    if blueprint_name not in suitable:
        raise KernelIncompatible(
            f"{blueprint_name} does not support {spec.type} layer {spec.layer_id!r}: "
            f"use {', '.join(suitable) or 'none'}"
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
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(layer_output.shape, generator=generator, dtype=torch.float32, device="cpu")
    (delta * direction.to(layer_output.dtype)).sum().backward()
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
