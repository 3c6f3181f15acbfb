import math

import numpy as np
import pytest

from tamiyo.models.features import FEATURE_VERSION, global_value, node_column
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.record import Tensor
from tests.support.factories import make_graph


def test_columns_by_name():
    graph = make_graph(health=[0.9, 0.8, 0.7], model={"train_loss": math.e - 1})
    np.testing.assert_array_equal(node_column(graph, "health"), np.float32([0.9, 0.8, 0.7]))
    assert global_value(graph, "train_loss") == pytest.approx(1.0)


def test_another_catalogues_graph_is_refused():
    graph = make_graph().model_copy(update={"feature_version": FEATURE_VERSION + 1})
    with pytest.raises(PolicyError, match="has feature version 2"):
        node_column(graph, "health")
    with pytest.raises(PolicyError, match="run all stages from one release"):
        global_value(graph, "train_loss")


@pytest.mark.parametrize("part", ["node_features", "edge_features", "global_features"])
def test_a_graph_of_another_width_is_refused(part):
    graph = make_graph()
    shorter = Tensor.of(getattr(graph, part).numpy()[..., :-1])
    with pytest.raises(PolicyError, match="widths"):
        node_column(graph.model_copy(update={part: shorter}), "health")
