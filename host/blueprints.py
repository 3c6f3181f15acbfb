"""The catalogue of blueprints, by their names on the wire."""

from __future__ import annotations

from tamiyo.host.blueprints_base import Blueprint, Kernel, seed_of
from tamiyo.host.spec import LayerSpec

__all__ = ["CATALOGUE", "Blueprint", "Kernel", "blueprint", "for_layer", "names", "register", "seed_of"]

CATALOGUE: dict[str, Blueprint] = {}


def register(cls: type[Blueprint]) -> type[Blueprint]:
    """Class decorator: put a blueprint into the catalogue. Raises KernelError where the name is taken."""
    raise NotImplementedError


def names() -> tuple[str, ...]:
    """Every blueprint's name, in catalogue order (the order is part of the policy's action space)."""
    return tuple(CATALOGUE)


def blueprint(name: str) -> Blueprint:
    """The blueprint of that name. Raises KernelError with the names there are."""
    raise NotImplementedError


def for_layer(spec: LayerSpec) -> tuple[str, ...]:
    """Names of the blueprints that can sit at such a layer, in catalogue order."""
    return tuple(name for name, entry in CATALOGUE.items() if entry.supports(spec))
