"""The state of a layer's seeds as a tensor in the model's state dict."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tamiyo.host._layers.seed import Seed, SeedState
from tamiyo.host.blueprints import blueprint
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.errors import KernelCorrupt, KernelIncompatible

FORMAT = 1
_SEED_BYTES = 1024
"""Room for one seed: its numbers grow by digits."""

_SAVED = (
    "index", "ramp_steps", "state", "kernel_id", "blueprint", "loaded_step", "ticks", "step", "unloading", "permanent",
    "executions", "total_errors", "errors", "clean", "probation", "awaiting_repair", "doomed", "quarantined_step",
    "snapshot_step",
)  # fmt: skip


def pack(spec: LayerSpec | None, seeds: Iterable[Seed]) -> Tensor:
    """Return the loaded seeds as JSON in a uint8 tensor [bytes], so that every value of a state dict is a tensor.

    torch saves the kernels' parameters itself. Raises KernelError if a kernel's blueprint is not in the catalogue.
    """
    loaded: list[dict[str, Any]] = []
    for seed in seeds:
        if seed.loaded:
            version = blueprint(seed.blueprint).version
            loaded.append({name: getattr(seed, name) for name in _SAVED} | {"version": version})
    state = {"format": FORMAT, "spec": spec.to_dict() if spec is not None else None, "seeds": loaded}
    data = json.dumps(state).encode()
    # Always of one length for the same kernels: averages of the weights pair all values of two state dicts.
    room = len(json.dumps(state | {"seeds": []})) + _SEED_BYTES * len(loaded)
    return torch.tensor(list(data.ljust(room)), dtype=torch.uint8)


def unpack(state: Tensor) -> tuple[list[Seed], LayerSpec | None]:
    """Return the loaded seeds, each with a kernel for torch to fill, and the spec they were built for.

    Raises KernelCorrupt for a malformed state, KernelIncompatible for another format or blueprint version.
    """
    try:
        saved = json.loads(bytes(state.to("cpu", torch.uint8).tolist()))
        if saved["format"] != FORMAT:
            raise KernelIncompatible(f"expected seeds in format {FORMAT}, got {saved['format']!r}")
        spec = LayerSpec.from_dict(saved["spec"]) if saved["seeds"] else None
        return [_restore(spec, entry) for entry in saved["seeds"] if spec is not None], spec
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelCorrupt(f"the saved state of a layer's seeds is malformed: {error!r}") from error


def _restore(spec: LayerSpec, entry: dict[str, Any]) -> Seed:
    recipe, version = blueprint(entry["blueprint"]), entry["version"]
    if version != recipe.version:
        raise KernelIncompatible(
            f"kernel {entry['kernel_id']} is of {recipe.name} version {version}, expected {recipe.version}"
        )
    values = {name: entry[name] for name in _SAVED} | {"state": SeedState(entry["state"])}
    return Seed(**values, kernel=recipe.build(spec, seed=0))
