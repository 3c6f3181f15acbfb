import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo.models.urgency import urgency
from tamiyo.schemas.errors import PolicyError
from tests.support.factories import make_graph

GRAPH = make_graph(layers=3)


def with_health(health, trend=(0.0, 0.0, 0.0)):
    return GRAPH.model_copy(update={"health": list(health), "health_trend": list(trend)})


def test_by_hand():
    graph = with_health([1.0, 0.4, 0.8], [0.0, -0.05, 0.2])
    # layer.1: .6 x .6 + .25 x .5 + .15 x (0 + .2) / 2
    assert urgency(graph, "layer.1") == pytest.approx(0.5)
    # layer.0 is well itself: only its neighbour's illness, .15 x .6
    assert urgency(graph, "layer.0") == pytest.approx(0.09)
    # layer.2 gets better, which is not urgent: .6 x .2 + .15 x .6
    assert urgency(graph, "layer.2") == pytest.approx(0.21)


def test_no_op_is_as_urgent_as_the_layer_that_needs_it_most():
    assert urgency(with_health([1.0, 0.4, 0.8]), None) == urgency(with_health([1.0, 0.4, 0.8]), "layer.1")


def test_the_ends_of_the_scale():
    assert urgency(with_health([1.0] * 3), None) == 0.0
    assert urgency(with_health([0.0] * 3, [-0.1] * 3), "layer.1") == pytest.approx(1.0)


def test_a_layer_alone_is_its_own_neighbour():
    graph = make_graph(layers=1).model_copy(update={"health": [0.0], "health_trend": [-5.0]})
    assert urgency(graph, "layer.0") == pytest.approx(1.0)


def test_an_unknown_layer_is_refused():
    with pytest.raises(PolicyError, match=r"layer\.9"):
        urgency(GRAPH, "layer.9")


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
def test_it_is_a_ratio(health, trend):
    assert 0.0 <= urgency(with_health(health, trend), None) <= 1.0
