"""A feature is one function with its metadata; a catalogue is the ordered list of them.

    node_features = Catalogue[GraphInputs]()

    @node_features.add(unit="ms", scale="x / 10", source="KernelPerformance.execution_latency_ms")
    def latency(g: GraphInputs) -> Array:
        '''Window mean.'''
        return g.window("execution_latency_ms") / 10.0

The order of the functions is the order of the columns. A function may return NaN where nothing was measured; the
column then holds 0.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from tamiyo.models.features.scales import Array

Inputs = TypeVar("Inputs")
Values = TypeVar("Values", bound=npt.ArrayLike)


@dataclass(frozen=True, slots=True)
class Feature(Generic[Inputs]):
    """One column: what it means, where it comes from and the function that computes it."""

    name: str
    unit: str
    """Of x, before it is scaled."""
    scale: str
    """How the column follows from x."""
    source: str
    """The record fields that x comes from, as Record.field."""
    formula: str
    """How x follows from its source: the function's docstring."""
    compute: Callable[[Inputs], npt.ArrayLike]
    """Returns the column before it is bounded: one entry a row, or a number."""


class Catalogue(Generic[Inputs]):
    """Features in the order of their columns, all computed from the same kind of `Inputs`."""

    def __init__(self) -> None:
        self._features: dict[str, Feature[Inputs]] = {}

    def add(
        self, *, unit: str, scale: str, source: str
    ) -> Callable[[Callable[[Inputs], Values]], Callable[[Inputs], Values]]:
        """Return a decorator that makes a function the next feature, under its own name.

        Args:
            unit: Unit of x, or its range.
            scale: How the column follows from x, e.g. "log10(x + 1)".
            source: Record fields that x comes from, e.g. "KernelPerformance.execution_latency_ms".

        Raises:
            ValueError: The name is taken, or the function has no docstring to state its formula.
        """

        def register(compute: Callable[[Inputs], Values]) -> Callable[[Inputs], Values]:
            self._append(compute.__name__, unit, scale, source, compute)
            return compute

        return register

    def add_one_hot(
        self, members: Sequence[str], *, source: str
    ) -> Callable[[Callable[[Inputs, str], Values]], Callable[[Inputs, str], Values]]:
        """Return a decorator that makes a function one flag a member, named `<function>_<member>`.

        Args:
            members: The second argument of the function for each of the features, in order.
            source: As for `add`.
        """

        def register(compute: Callable[[Inputs, str], Values]) -> Callable[[Inputs, str], Values]:
            for member in members:

                def flag(inputs: Inputs, member: str = member) -> Values:
                    return compute(inputs, member)

                flag.__doc__ = compute.__doc__
                self._append(f"{compute.__name__}_{member}", "flag", "one-hot", source, flag)
            return compute

        return register

    def _append(
        self, name: str, unit: str, scale: str, source: str, compute: Callable[[Inputs], npt.ArrayLike]
    ) -> None:
        formula = inspect.getdoc(compute)
        if not formula:
            raise ValueError(f"feature {name} has no docstring: state its formula there")
        if name in self._features:
            raise ValueError(f"there are two features named {name}: give one another name")
        self._features[name] = Feature(name, unit, scale, source, " ".join(formula.split()), compute)

    @property
    def features(self) -> tuple[Feature[Inputs], ...]:
        """The features in the order of their columns."""
        return tuple(self._features.values())

    def columns(self, inputs: Inputs, rows: int) -> Array:
        """Return every feature's values before they are bounded, [rows, features].

        Args:
            inputs: What each feature is computed from.
            rows: Entries of a column: layers, edges, or 1.
        """
        values = np.empty((len(self._features), rows))
        for column, feature in zip(values, self._features.values(), strict=True):
            column[:] = feature.compute(inputs)
        return values.T
