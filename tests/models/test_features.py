import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models import features
from tamiyo.models.features import (
    EDGE_FEATURES,
    GLOBAL_FEATURES,
    LIMIT,
    NODE_FEATURES,
    bounded,
    global_value,
    node_column,
)
from tamiyo.schemas.errors import PolicyError
from tests.support.factories import make_graph


def test_the_catalogue_is_complete_and_names_are_unique():
    for catalogue in (NODE_FEATURES, EDGE_FEATURES, GLOBAL_FEATURES):
        assert len({feature.name for feature in catalogue}) == len(catalogue)
        assert all(f.name and f.unit and f.normalisation and f.source for f in catalogue)
    assert len(EDGE_FEATURES) == 8
    assert [f.name for f in NODE_FEATURES[:4]] == ["health", "latency", "error_rate", "log_parameters"]


@given(st.lists(st.floats(width=64) | st.just(1e308) | st.just(-1e308), max_size=20))
def test_bounded_is_finite_and_keeps_what_is_inside(values):
    found = bounded(values)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert (np.abs(found) <= LIMIT).all()
    for value, kept in zip(values, found, strict=True):
        expected = 0.0 if math.isnan(value) else max(-LIMIT, min(LIMIT, value))
        assert kept == np.float32(expected)


def test_columns_by_name():
    graph = make_graph(health=[0.9, 0.8, 0.7], model={"train_loss": math.e - 1})
    np.testing.assert_array_equal(node_column(graph, "health"), np.float32([0.9, 0.8, 0.7]))
    assert global_value(graph, "train_loss") == pytest.approx(1.0)


def test_another_catalogues_graph_is_refused():
    graph = make_graph().model_copy(update={"feature_version": features.FEATURE_VERSION + 1})
    with pytest.raises(PolicyError, match="feature version 2"):
        node_column(graph, "health")
    with pytest.raises(PolicyError, match="run all stages from one release"):
        global_value(graph, "train_loss")
