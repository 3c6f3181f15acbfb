"""The features of an edge between two layers."""

import math
from dataclasses import dataclass

import numpy as np

from tamiyo.models.features import nodes
from tamiyo.models.features.catalogue import Catalogue
from tamiyo.models.features.inputs import GraphInputs
from tamiyo.models.features.scales import Array, log10_above

EDGE_KINDS = ("data", "skip", "order")


@dataclass(frozen=True, slots=True)
class EdgeInputs:
    """A graph's inputs, and the nodes that each edge joins."""

    graph: GraphInputs
    source: list[int]
    """Node index of each edge's source, [edges]."""
    target: list[int]
    """Node index of each edge's target, [edges]."""

    def difference(self, column: Array) -> Array:
        """Return target minus source of a node feature, [edges] from [layers]."""
        return np.asarray(column[self.target] - column[self.source])


edge_features = Catalogue[EdgeInputs]()
feature = edge_features.add


@edge_features.add_one_hot(EDGE_KINDS, source="LayerEdge.kind")
def kind(e: EdgeInputs, member: str) -> list[bool]:
    """1 where the edge is of this kind."""
    return [edge.kind == member for edge in e.graph.topology.edges]


@feature(unit="values a sample", scale="log10(x + 1)", source="LayerNode.output_shape")
def log_elements(e: EdgeInputs) -> Array:
    """Size of the source's output."""
    elements = np.array([float(math.prod(layer.output_shape)) for layer in e.graph.topology.layers])
    return log10_above(elements[e.source], 1.0)


@feature(unit="ratio", scale="log10(x)", source="LayerNode.parameters")
def log_parameter_ratio(e: EdgeInputs) -> Array:
    """(Target's parameters + 1) / (source's + 1)."""
    return e.difference(nodes.log_parameters(e.graph))


@feature(unit="ratio", scale="log10(x)", source="LayerHealth.gradient_norm")
def log_gradient_ratio(e: EdgeInputs) -> Array:
    """(Target's gradient norm + 1e-6) / (source's + 1e-6), window means."""
    return e.difference(nodes.log_gradient_norm(e.graph))


@feature(unit="-1..1", scale="x", source="ModelGraph.health")
def health_difference(e: EdgeInputs) -> Array:
    """Target's health minus source's."""
    return e.difference(nodes.health(e.graph))


@feature(unit="flag", scale="x", source="GraphBatch")
def reversed(_: EdgeInputs) -> float:
    """0 in the record; a batch adds a copy of each edge against the flow, with 1."""
    return 0.0
