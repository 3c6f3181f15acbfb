import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models.features import EDGE_FEATURES, LIMIT, global_value, node_column
from tamiyo.models.graph import HISTORY_WINDOWS, build_graph
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import graph_id
from tests.support.factories import CONV_BLUEPRINTS, METRICS, MODEL_METRICS, make_graph, make_topology, make_window


def test_the_specifications_node_features():
    window = make_window(
        health=[0.9, 0.5, 1.0],
        execution_latency_ms=[0.5, 4.0, 20.0],
        error_count=[0.0, 0.25, 2.0],
    )
    topology = make_topology()
    graph = build_graph(window, topology, [])
    assert node_column(graph, "health").tolist() == pytest.approx([0.9, 0.5, 1.0])
    assert node_column(graph, "latency").tolist() == pytest.approx([0.05, 0.4, 2.0])
    assert node_column(graph, "error_rate").tolist() == pytest.approx([0.0, 0.25, 2.0])
    assert node_column(graph, "log_parameters").tolist() == pytest.approx([math.log10(133)] * 3)
    types = ["type_linear", "type_conv1d", "type_conv2d", "type_other"]
    assert [node_column(graph, name)[0] for name in types] == [0.0, 1.0, 0.0, 0.0]
    assert node_column(build_graph(window, make_topology(type="lstm"), []), "type_other")[0] == 1.0


def test_ids_and_metadata_come_from_window_and_topology():
    window, topology = make_window(4, final=True), make_topology(protected=["layer.1"], cooldown_steps=150)
    graph = build_graph(window, topology, [])
    assert graph.graph_id == graph_id(window.window_id, topology.topology_id)
    assert (graph.step, graph.time_ms, graph.final, graph.signals) == (240, window.time_ms, True, 30)
    assert graph.layer_id == ["layer.0", "layer.1", "layer.2"]
    assert (graph.edge_source, graph.edge_target) == ([0, 1], [1, 2])
    assert graph.protected == [False, True, False]
    assert (graph.parameter_budget, graph.cooldown_steps) == (20_000, 150)
    assert graph.model_metrics["train_loss"] == 1.2
    assert [offer.name for offer in graph.offers[2]] == list(CONV_BLUEPRINTS)


def test_a_layer_without_signals_still_has_a_node():
    graph = build_graph(make_window(layers=["layer.2", "unheard_of"], health=[0.3, 0.1]), make_topology(), [])
    assert graph.layer_id == ["layer.0", "layer.1", "layer.2"]
    assert graph.health == [1.0, 1.0, 0.3]
    assert node_column(graph, "seen").tolist() == [0.0, 0.0, 1.0]
    assert graph.dormant_seeds == [4, 4, 4]
    assert graph.problematic == ["layer.2"]


def test_seeds_and_counts_fall_back_to_history_and_then_to_the_topology():
    before = make_window(
        0, dormant_seeds=[3, 2, 4], active_seeds=[1, 1, 0], fossilized_seeds=[0, 1, 0], learning_rate_scale=[0.5, 1, 1],
        model={"parameters": 900.0, "base_parameters": 574.0, "steps_since_adaptation": 20.0},
    )  # fmt: skip
    gaps = dict.fromkeys(["dormant_seeds", "active_seeds", "fossilized_seeds", "learning_rate_scale"])
    empty = {"parameters": None, "base_parameters": None, "steps_since_adaptation": None}
    graph = build_graph(make_window(1, model=empty, **gaps), make_topology(), [before])
    assert (graph.dormant_seeds, graph.active_seeds, graph.fossilized_seeds) == ([3, 2, 4], [1, 1, 0], [0, 1, 0])
    assert graph.learning_rate_scale == [0.5, 1.0, 1.0]
    assert (graph.parameters, graph.base_parameters) == (900, 574)
    assert graph.steps_since_adaptation == 70  # reported as 20 at step 40; this window ends at step 90
    fresh = build_graph(make_window(1, model=empty, **gaps), make_topology(), [])
    assert (fresh.dormant_seeds, fresh.parameters, fresh.steps_since_adaptation) == ([4, 4, 4], 574, None)


def test_growth_scores_are_shared_out_over_the_network():
    graph = make_graph(growth_score=[0.3, 0.1, None])
    assert node_column(graph, "growth_share").tolist() == pytest.approx([0.75, 0.25, 0.0])
    assert node_column(graph, "growth_measured").tolist() == [1.0, 1.0, 0.0]
    none = make_graph(growth_score=None)
    assert not node_column(none, "growth_share").any()


def test_contribution_keeps_its_sign_and_counts_only_while_a_seed_is_active():
    graph = make_graph(4, contribution=[1e-9, -0.5, 0.5], active_seeds=[1, 1, 0])
    worth = node_column(graph, "contribution")
    assert worth[0] > 0
    assert worth[1] == pytest.approx(-math.log10(51))
    assert worth[2] == 0
    assert node_column(graph, "contribution_measured").tolist() == [1.0, 1.0, 0.0]
    assert node_column(graph, "contribution_negative").tolist() == [0.0, 0.5, 0.0]
    assert node_column(graph, "contribution_positive")[0] == 0.5


def test_a_new_kernel_does_not_inherit_the_old_ones_record():
    run = [make_window(index, active_seeds=1, contribution=-0.1) for index in range(5)]
    run.append(make_window(5, active_seeds=0, contribution=None))
    run.append(make_window(6, active_seeds=1, contribution=None))
    found = node_column(build_graph(run[-1], make_topology(), run[:-1]), "contribution_negative")
    assert not found.any()
    run.append(make_window(7, active_seeds=1, contribution=-0.1))
    found = node_column(build_graph(run[-1], make_topology(), run[:-1]), "contribution_negative")
    assert found.tolist() == [1 / 8] * 3


def test_trends_over_the_windows_in_sight():
    run = [
        make_window(i, health=[0.9 - 0.1 * i, 0.8, 0.8], model={"train_loss": 4.0 - i, "validation_loss": None})
        for i in range(3)
    ]
    graph = build_graph(run[-1], make_topology(), run[:-1])
    assert graph.health_trend == pytest.approx([-0.1, 0.0, 0.0])
    assert graph.problematic == ["layer.0"]
    assert global_value(graph, "train_loss_trend") == pytest.approx(10 * -1 / 3)
    assert global_value(graph, "train_loss_change") == pytest.approx(10 * -1 / 3)
    assert global_value(graph, "validation_measured") == 0
    assert build_graph(run[-1], make_topology(), []).health_trend == [0.0, 0.0, 0.0]


def test_only_the_last_windows_count():
    run = [make_window(index, health=1.0 if index else 0.0) for index in range(HISTORY_WINDOWS + 2)]
    assert build_graph(run[-1], make_topology(), run[:-1]).health_trend == [0.0, 0.0, 0.0]
    assert global_value(build_graph(run[-1], make_topology(), run[:-1]), "windows_seen") == 1.0


def test_edge_features():
    graph = make_graph(health=[0.9, 0.4, 0.4], gradient_norm=[0.1, 1.0, 1.0])
    edge = dict(zip([f.name for f in EDGE_FEATURES], graph.edge_features.numpy()[0], strict=True))
    assert (edge["kind_data"], edge["kind_skip"], edge["reversed"]) == (1.0, 0.0, 0.0)
    assert edge["log_elements"] == pytest.approx(math.log10(121))
    assert edge["health_difference"] == pytest.approx(-0.5)
    assert edge["log_gradient_ratio"] == pytest.approx(1.0, abs=1e-4)


def test_one_layer_without_edges():
    graph = make_graph(layers=1)
    assert graph.edge_features.shape == [0, 8]
    assert node_column(graph, "depth").tolist() == [0.0]


def test_another_runs_window_is_refused():
    with pytest.raises(RecordError, match="another run"):
        build_graph(make_window(run_id="run-2"), make_topology(), [])
    with pytest.raises(RecordError, match="another run"):
        build_graph(make_window(1), make_topology(), [make_window(0, run_id="run-2")])


@st.composite
def hostile_windows(draw):
    """Windows of any finite values at all, each metric there or not."""
    value = st.none() | st.sampled_from([0.0, 1e308, -1e308, 1.0, 5e-324]) | st.floats(-1e9, 1e9)
    windows = []
    for index in range(draw(st.integers(1, 4))):
        names = draw(st.permutations(["layer.0", "layer.1", "layer.2", "stranger"]))[: draw(st.integers(0, 4))]
        columns = {name: draw(st.lists(value, min_size=len(names), max_size=len(names))) for name in METRICS}
        model = {name: draw(value) for name in [*MODEL_METRICS, "steps_since_adaptation"]}
        windows.append(make_window(index, layers=names, model=model, **columns))
    return windows


@settings(max_examples=25, deadline=None)
@given(hostile_windows(), st.sampled_from([None, 1, 2**62]), st.sampled_from([0, 1, 2**62]))
def test_any_window_gives_a_finite_graph_and_the_same_one_again(windows, planned, budget):
    topology = make_topology(planned_steps=planned, parameter_budget=budget)
    graph = build_graph(windows[-1], topology, windows[:-1])
    for tensor in (graph.node_features, graph.edge_features, graph.global_features):
        assert np.isfinite(tensor.numpy()).all()
        assert (np.abs(tensor.numpy()) <= LIMIT).all()
    assert build_graph(windows[-1], topology, windows[:-1]).model_dump_json() == graph.model_dump_json()
