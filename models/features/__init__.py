"""The feature catalogue: every number that the policy reads of a graph, with its unit, scale, source and formula.

`nodes.py`, `edges.py` and `network.py` have one function per feature. Scales are fixed, never learned from data, so
that a graph means the same to every version of the policy. A value that was not measured is 0, and a `_measured` or
`_known` column marks it. Every value is finite and within +-LIMIT.

Example:
    >>> from tamiyo.models.features import NODE_FEATURES
    >>> feature = NODE_FEATURES[1]
    >>> print(feature.name, "|", feature.unit, "|", feature.scale, "|", feature.source, "|", feature.formula)
    latency | ms | x / 10 | KernelPerformance.execution_latency_ms | Window mean.
"""

from tamiyo.models.features.catalogue import Feature
from tamiyo.models.features.columns import (
    EDGE_FEATURES,
    GLOBAL_FEATURES,
    NODE_FEATURES,
    GraphFeatures,
    global_value,
    node_column,
    require_catalogue,
)
from tamiyo.models.features.inputs import HISTORY_WINDOWS, GraphInputs
from tamiyo.models.features.scales import LIMIT
from tamiyo.models.features.version import FEATURE_HASH, FEATURE_VERSION

__all__ = [
    "EDGE_FEATURES",
    "FEATURE_HASH",
    "FEATURE_VERSION",
    "GLOBAL_FEATURES",
    "HISTORY_WINDOWS",
    "LIMIT",
    "NODE_FEATURES",
    "Feature",
    "GraphFeatures",
    "GraphInputs",
    "global_value",
    "node_column",
    "require_catalogue",
]
