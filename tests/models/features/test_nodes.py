"""The features of a layer, at values computed by hand."""

import math

import pytest

from tamiyo.models.features import node_column
from tamiyo.models.graph import build_graph
from tests.support.factories import make_graph, make_topology, make_window

# Five windows with these metrics of every layer, which has four seeds.
METRICS = {
    "gradient_norm": 0.1,
    "update_ratio": 1e-2,
    "dead_neuron_ratio": 0.25,
    "activation_variance": 10.0,
    "avg_correlation": 0.5,
    "growth_score": 0.1,
    "contribution": 0.09,
    "kernel_load": 0.75,
    "alpha": 0.5,
    "dormant_seeds": 1.0,
    "active_seeds": 2.0,
    "fossilized_seeds": 0.0,
    "error_seeds": 1.0,
    "kernel_parameters": 99.0,
    "learning_rate_scale": 0.25,
    "cache_hit_rate": 0.5,
    "recovery_errors": 1.0,
    "recovery_success": 0.25,
}
VALUES = {
    "log_gradient_norm": math.log10(0.1 + 1e-6),
    "log_update_ratio": math.log10(1e-2 + 1e-6) + 3,
    "dead_neuron_ratio": 0.25,
    "log_activation_variance": math.log10(10 + 1e-6),
    "avg_correlation": 0.5,
    "log_growth_score": math.log10(0.1 + 1e-6),
    "growth_share": 1 / 3,
    "growth_measured": 1.0,
    "contribution": 1.0,
    "contribution_measured": 1.0,
    "contribution_negative": 0.0,
    "contribution_positive": 5 / 8,
    "active_windows": 5 / 8,
    "kernel_load": 0.75,
    "alpha": 0.5,
    "dormant_share": 0.25,
    "active_share": 0.5,
    "fossilized_share": 0.0,
    "error_share": 0.25,
    "log_kernel_parameters": 2.0,
    "log_learning_rate_scale": -2.0,
    "cache_hit_rate": 0.5,
    "recovery_errors": math.log10(6),  # five values in the window
    "recovery_failures": 0.75,
    "health_trend": 0.0,
    "latency_trend": 0.0,
    "seen": 1.0,
    "log_signals": math.log10(6),
    "protected": 0.0,
    "problematic": 1.0,
}


def test_values_by_hand():
    graph = make_graph(**METRICS)
    assert {name: float(node_column(graph, name)[1]) for name in VALUES} == pytest.approx(VALUES, abs=1e-6)
    assert node_column(graph, "depth").tolist() == [0.0, 0.5, 1.0]


def test_what_was_not_measured():
    graph = make_graph(**dict.fromkeys(METRICS))
    names = {"cache_hit_rate": 1.0, "recovery_failures": 0.0, "growth_measured": 0.0, "contribution_measured": 0.0}
    assert {name: float(node_column(graph, name)[1]) for name in names} == names


def test_trends_are_relative():
    run = [
        make_window(index, execution_latency_ms=1.0 + index, gradient_norm=3.0 - index, growth_score=1.0 + index)
        for index in range(3)
    ]
    graph = build_graph(run[-1], make_topology(), run[:-1])
    assert node_column(graph, "latency_trend")[0] == pytest.approx(0.5)
    assert node_column(graph, "gradient_trend")[0] == pytest.approx(-0.5)
    assert node_column(graph, "growth_trend")[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "problem", [{"health": 0.59}, {"error_count": 0.06}, {"dead_neuron_ratio": 0.91}, {"error_seeds": 1.0}]
)
def test_a_layer_with_any_problem_needs_attention(problem):
    assert make_graph().problematic == []
    (metric, value), healthy = *problem.items(), {"health": 0.9}
    graph = make_graph(**{**healthy, metric: [value, None, None]})
    assert graph.problematic == ["layer.0"]
    assert node_column(graph, "problematic").tolist() == [1.0, 0.0, 0.0]
