"""The catalogue of blueprints, by name."""

from __future__ import annotations

from typing import TypeVar

from tamiyo.host.blueprints._base import Blueprint, Kernel, seed_of
from tamiyo.host.blueprints._input_side import LowRank, ParallelExpansion
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.host.blueprints._output_side import Bottleneck, DepthwiseSeparable, SqueezeExcite
from tamiyo.schemas.errors import KernelError

__all__ = [
    "CATALOGUE",
    "Blueprint",
    "Bottleneck",
    "DepthwiseSeparable",
    "Kernel",
    "LowRank",
    "ParallelExpansion",
    "SqueezeExcite",
    "blueprint",
    "for_layer",
    "names",
    "register",
    "seed_of",
]

_B = TypeVar("_B", bound=Blueprint)

CATALOGUE: dict[str, Blueprint] = {}


def register(cls: type[_B]) -> type[_B]:
    """Add a blueprint to the catalogue; a class decorator.

    Args:
        cls: A concrete subclass of Blueprint; its `name` is its key.

    Returns:
        `cls` itself.

    Raises:
        KernelError: The name is taken.

    Example:
        >>> from tamiyo.host import register
        >>> from tamiyo.host.blueprints import CATALOGUE, Bottleneck
        >>> @register
        ... class WideBottleneck(Bottleneck):
        ...     name = "wide_bottleneck"
        ...     floor = 64
        >>> del CATALOGUE["wide_bottleneck"]  # only so that the example leaves no trace
    """
    taken = CATALOGUE.get(cls.name)
    if taken is not None:
        raise KernelError(f"blueprint {cls.name!r} is registered by {type(taken).__name__}: choose another name")
    CATALOGUE[cls.name] = cls()
    return cls


# The order is part of the policy's action space: add new ones at the end.
for _blueprint in (ParallelExpansion, LowRank, Bottleneck, DepthwiseSeparable, SqueezeExcite):
    register(_blueprint)


def names() -> tuple[str, ...]:
    """Return the name of every blueprint, in catalogue order."""
    return tuple(CATALOGUE)


def blueprint(name: str) -> Blueprint:
    """Return the blueprint called `name`. Raises KernelError if there is none."""
    if name not in CATALOGUE:
        raise KernelError(f"there is no blueprint {name!r}; there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def for_layer(spec: LayerSpec) -> tuple[str, ...]:
    """Return the names of the blueprints that support a layer, in catalogue order; none for a norm or embedding."""
    return tuple(name for name, entry in CATALOGUE.items() if spec.growable and entry.supports(spec))
