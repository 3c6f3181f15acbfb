"""Find the user's own model inside what frameworks put around it."""

from __future__ import annotations

import torch
from torch import nn

from tamiyo.schemas.errors import ConfigurationError


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside torch.compile's and DistributedDataParallel's wrappers.

    Raises:
        ConfigurationError: It is no module, or one that cannot grow: a ScriptModule, DataParallel, or sharded by FSDP.
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            break
        model = inner
    for module in model.modules():
        reason = refusal(module)
        if reason:
            raise ConfigurationError(f"{type(module).__name__} cannot grow: {reason}")
    sharded = {type(parameter).__name__ for parameter in model.parameters()} & {"DTensor", "FlatParameter"}
    if sharded:
        raise ConfigurationError(
            f"the model cannot grow: its parameters are shards ({', '.join(sharded)}), and kernels beside them would "
            "not be; use DistributedDataParallel"
        )
    return model


def refusal(module: nn.Module) -> str | None:
    """Return why nothing can grow in a module, because of its own class; None if something can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "its code is fixed; attach the Python model, and script nothing before the training"
    if isinstance(module, nn.DataParallel):
        return "it copies the network in each forward pass; use DistributedDataParallel"
    if any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in type(module).__mro__):
        return "its parameters are shards, and kernels beside them would not be; use DistributedDataParallel"
    return None
