"""The features of the whole network, at values computed by hand."""

import math

import pytest

from tamiyo.models.features import global_value
from tamiyo.models.graph import build_graph
from tests.support.factories import make_graph, make_topology, make_window

# Five windows: the last one ends at step 240.
MODEL = {
    "train_loss": 1.0,
    "validation_loss": 3.0,
    "parameters": 1149.0,
    "base_parameters": 574.0,
    "steps_since_adaptation": 25.0,
    "throughput": 99.0,
    "step_time_ms": 9.0,
    "memory_bytes": 999_999.0,
    "overhead_ratio": 0.25,
}
VALUES = {
    "train_loss": math.log(2),
    "validation_loss": math.log(4),
    "validation_measured": 1.0,
    "train_loss_change": 0.0,
    "loss_gap": 0.5,
    "train_accuracy": 0.55,
    "validation_accuracy": 0.5,
    "accuracy_measured": 1.0,
    "log_model_parameters": math.log10(1150),
    "parameter_growth": math.log10(2),
    "budget_left": 0.75,
    "adapted": 1.0,
    "log_steps_since_adaptation": math.log10(26),
    "cooldown_left": 0.75,
    "log_step": math.log10(241),
    "progress": 0.08,
    "progress_known": 1.0,
    "windows_seen": 0.5,
    "mean_health": 0.6,
    "minimum_health": 0.3,
    "mean_health_trend": 0.0,
    "problematic_share": 1 / 3,
    "grown_share": 2 / 3,
    "log_throughput": 2.0,
    "throughput_trend": 0.0,
    "log_step_time": 1.0,
    "overhead_ratio": 0.25,
    "log_memory": 0.0,
    "log_layers": math.log10(3),
    "shed_share": 0.0,
}


def test_values_by_hand():
    topology = make_topology(parameter_budget=2300, cooldown_steps=100)
    graph = make_graph(
        topology=topology,
        model=MODEL,
        health=[0.9, 0.6, 0.3],
        active_seeds=[1.0, 0.0, 0.0],
        fossilized_seeds=[0.0, 1.0, 0.0],
    )
    assert {name: global_value(graph, name) for name in VALUES} == pytest.approx(VALUES, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "topology", "model", "value"),
    [
        ("budget_left", {"parameter_budget": 0}, {}, 0.0),
        ("budget_left", {"parameter_budget": 500}, {}, 0.0),  # used up
        ("budget_left", {}, {"parameters": 500.0}, 1.0),  # fewer than without kernels
        ("cooldown_left", {"cooldown_steps": 25}, {}, 0.0),
        ("cooldown_left", {"cooldown_steps": 0}, {}, 0.0),
        ("cooldown_left", {"cooldown_steps": 100}, {"steps_since_adaptation": None}, 0.0),
        ("adapted", {}, {"steps_since_adaptation": None}, 0.0),
        ("log_steps_since_adaptation", {}, {"steps_since_adaptation": None}, 0.0),
        ("progress", {"planned_steps": None}, {}, 0.0),
        ("progress_known", {"planned_steps": None}, {}, 0.0),
        ("progress", {"planned_steps": 100}, {}, 1.0),
        ("loss_gap", {}, {"validation_loss": None}, 0.0),
        ("validation_measured", {}, {"validation_loss": None}, 0.0),
        ("accuracy_measured", {}, {"validation_accuracy": None}, 0.0),
    ],
)
def test_the_ends_of_a_scale_and_what_is_unknown(name, topology, model, value):
    graph = make_graph(topology=make_topology(**topology), model={**MODEL, **model})
    assert global_value(graph, name) == value


def test_the_share_that_was_shed():
    window = make_window(4).model_copy(update={"shed": 10})  # beside 30 signals
    assert global_value(build_graph(window, make_topology(), []), "shed_share") == 0.25


def test_changes_and_trends_are_relative():
    run = [make_window(index, model={"validation_loss": 4.0 - index, "throughput": 1.0 + index}) for index in range(3)]
    graph = build_graph(run[-1], make_topology(), run[:-1])
    assert global_value(graph, "validation_loss_change") == pytest.approx(-10 / 3)
    assert global_value(graph, "validation_loss_trend") == pytest.approx(-10 / 3)
    assert global_value(graph, "throughput_trend") == pytest.approx(10 / 2)
