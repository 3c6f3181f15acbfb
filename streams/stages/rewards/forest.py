"""Boosted regression trees as plain arrays: what a fitted estimator computes, without the library that fitted it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.errors import PolicyError

_ARRAYS = ("feature", "threshold", "missing_left", "left", "right", "value", "roots")


@dataclass(frozen=True, slots=True)
class Forest:
    """A sum of trees. Node arrays have one entry a node; a leaf is its own left and right child."""

    feature: npt.NDArray[np.int32]
    """Position in the row that a node compares."""
    threshold: npt.NDArray[np.float64]
    """At or below it a row goes left."""
    missing_left: npt.NDArray[np.int32]
    """Whether a row with NaN there goes left."""
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    value: npt.NDArray[np.float64]
    """Of a leaf."""
    roots: npt.NDArray[np.int32]
    """[trees]: index of each tree's root."""
    base: float
    depth: int

    def predict(self, row: npt.NDArray[np.float64]) -> float:
        """Return the prediction for one row [features], in which NaN means unknown."""
        node = self.roots
        for _ in range(self.depth):
            at = row[self.feature[node]]
            goes_left = np.where(np.isnan(at), self.missing_left[node] > 0, at <= self.threshold[node])
            node = np.where(goes_left, self.left[node], self.right[node])
        return self.base + float(self.value[node].sum())

    def tensors(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays under `name.`, for a safetensors file."""
        found = {f"{name}.{part}": getattr(self, part) for part in _ARRAYS}
        return {**found, f"{name}.base": np.array([self.base]), f"{name}.depth": np.array([self.depth])}

    @classmethod
    def of(cls, tensors: Mapping[str, npt.NDArray[np.generic]], name: str, features: int) -> Self:
        """Return the forest saved under `name`; raises PolicyError if the arrays do not make one of `features`."""
        try:
            arrays = {part: np.asarray(tensors[f"{name}.{part}"]) for part in _ARRAYS}
            base, depth = float(tensors[f"{name}.base"][0]), int(tensors[f"{name}.depth"][0])
        except (KeyError, IndexError, ValueError) as error:
            raise PolicyError(f"the estimator has no forest {name!r}: {error}") from error
        nodes = len(arrays["feature"])
        whole = all(len(arrays[part]) == nodes for part in _ARRAYS if part != "roots") and 0 <= depth <= 64
        if not whole or not np.isfinite([base, *arrays["value"]]).all():
            raise PolicyError(f"the estimator's forest {name!r} is damaged")
        for part, limit in (("feature", features), ("left", nodes), ("right", nodes), ("roots", nodes)):
            if len(arrays[part]) and not (arrays[part].min() >= 0 and arrays[part].max() < limit):
                raise PolicyError(f"the estimator's forest {name!r} is damaged: {part} out of range")
        return cls(**arrays, base=base, depth=depth)
