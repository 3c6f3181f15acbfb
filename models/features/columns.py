"""Reads the features of a graph by name, and checks that they are of this catalogue."""

import numpy as np
import numpy.typing as npt

from tamiyo.models.features.edges import edge_features
from tamiyo.models.features.network import global_features
from tamiyo.models.features.nodes import node_features
from tamiyo.models.features.version import FEATURE_VERSION
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError

NODE_FEATURES = node_features.features
EDGE_FEATURES = edge_features.features
GLOBAL_FEATURES = global_features.features

_NODE = {feature.name: index for index, feature in enumerate(NODE_FEATURES)}
_GLOBAL = {feature.name: index for index, feature in enumerate(GLOBAL_FEATURES)}


def require_catalogue(graph: ModelGraph) -> None:
    """Check that this program's catalogue built a graph.

    Args:
        graph: A graph from any producer.

    Raises:
        PolicyError: Its feature version or the widths of its features are others.
    """
    shape = graph.node_features.shape[1], graph.edge_features.shape[-1], *graph.global_features.shape
    expected = len(NODE_FEATURES), len(EDGE_FEATURES), len(GLOBAL_FEATURES)
    if graph.feature_version != FEATURE_VERSION or shape != expected:
        raise PolicyError(
            f"expected feature version {FEATURE_VERSION} with widths {expected}, but graph {graph.graph_id} has "
            f"feature version {graph.feature_version} with widths {shape}: run all stages from one release"
        )


class GraphFeatures:
    """The features of one graph, by name.

    Example:
        >>> features = GraphFeatures(graph)
        >>> len(features.node("health")) == len(graph.layer_id), 0.0 <= features.whole("progress") <= 1.0
        (True, True)
    """

    def __init__(self, graph: ModelGraph) -> None:
        """Read a graph.

        Args:
            graph: A graph of this catalogue.

        Raises:
            PolicyError: Another catalogue built the graph.
        """
        require_catalogue(graph)
        self._nodes = graph.node_features.numpy()
        self._whole = graph.global_features.numpy()

    def node(self, name: str) -> npt.NDArray[np.float32]:
        """Return one feature of every layer, float32 [layers]; KeyError if there is no such feature.

        Args:
            name: A name of NODE_FEATURES.
        """
        column: npt.NDArray[np.float32] = self._nodes[:, _NODE[name]]
        return column

    def whole(self, name: str) -> float:
        """Return one feature of the whole network; KeyError if there is no such feature.

        Args:
            name: A name of GLOBAL_FEATURES.
        """
        return float(self._whole[_GLOBAL[name]])


def node_column(graph: ModelGraph, name: str) -> npt.NDArray[np.float32]:
    """Return one feature of every layer.

    Args:
        graph: A graph of this catalogue.
        name: A name of NODE_FEATURES.

    Returns:
        The column, float32 [layers].

    Raises:
        PolicyError: Another catalogue built the graph.
        KeyError: There is no such feature.
    """
    return GraphFeatures(graph).node(name)


def global_value(graph: ModelGraph, name: str) -> float:
    """Return one feature of the whole network.

    Args:
        graph: A graph of this catalogue.
        name: A name of GLOBAL_FEATURES.

    Raises:
        PolicyError: Another catalogue built the graph.
        KeyError: There is no such feature.
    """
    return GraphFeatures(graph).whole(name)
