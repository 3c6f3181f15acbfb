"""The feature catalogue (skeleton of names follows)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import ModelGraph

FEATURE_VERSION = 1
LIMIT = 10.0


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a graph: where it comes from and how it is scaled."""

    name: str
    unit: str
    normalisation: str
    source: str


NODE_FEATURES: tuple[Feature, ...] = ()
EDGE_FEATURES: tuple[Feature, ...] = ()
GLOBAL_FEATURES: tuple[Feature, ...] = ()


def node_column(graph: ModelGraph, name: str) -> npt.NDArray[np.float32]:
    """Return node feature `name` of every node, [nodes]. Raises PolicyError for another catalogue's graph."""
    raise NotImplementedError


def global_value(graph: ModelGraph, name: str) -> float:
    """Return global feature `name`. Raises PolicyError for another catalogue's graph."""
    raise NotImplementedError
