"""The catalogue of blueprints, by their names on the wire."""

from __future__ import annotations

from typing import TypeVar

from tamiyo.host.blueprints.base import Blueprint, Kernel, seed_of
from tamiyo.host.blueprints.input_side import LowRank, ParallelExpansion
from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.blueprints.output_side import Bottleneck, DepthwiseSeparable, SqueezeExcite
from tamiyo.schemas.errors import KernelError

__all__ = ["CATALOGUE", "Blueprint", "Kernel", "blueprint", "for_layer", "names", "register", "seed_of"]

B = TypeVar("B", bound=Blueprint)

CATALOGUE: dict[str, Blueprint] = {}


def register(cls: type[B]) -> type[B]:
    """Class decorator: put a blueprint into the catalogue. Raises KernelError where the name is taken."""
    taken = CATALOGUE.get(cls.name)
    if taken is not None:
        raise KernelError(f"blueprint {cls.name!r} is {type(taken).__name__} already: choose another name")
    CATALOGUE[cls.name] = cls()
    return cls


# The order is part of the policy's action space: new ones go to the end.
for _blueprint in (ParallelExpansion, LowRank, Bottleneck, DepthwiseSeparable, SqueezeExcite):
    register(_blueprint)


def names() -> tuple[str, ...]:
    """Every blueprint's name, in catalogue order."""
    return tuple(CATALOGUE)


def blueprint(name: str) -> Blueprint:
    """The blueprint of that name. Raises KernelError with the names there are."""
    if name not in CATALOGUE:
        raise KernelError(f"no blueprint is called {name!r}: there are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def for_layer(spec: LayerSpec) -> tuple[str, ...]:
    """Names of the blueprints that can sit at such a layer, in catalogue order."""
    return tuple(name for name, entry in CATALOGUE.items() if entry.supports(spec))
