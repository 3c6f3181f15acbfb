import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models.actions import kinds, size, to_index
from tamiyo.models.graph import build_graph
from tamiyo.models.heuristic import baseline_distribution, baseline_logits
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.schemas.adaptation import Action
from tests.support.factories import BLUEPRINTS, make_graph, make_topology, make_window

KINDS = kinds(BLUEPRINTS)


def probabilities(graph, **how):
    mask = legal_actions(graph, KINDS, limits=MaskLimits(), **how)
    found = np.where(mask, np.exp(baseline_logits(graph, KINDS, mask).astype(np.float64)), 0.0)
    assert found.sum() == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(baseline_distribution(graph, KINDS, mask), found, atol=1e-6)
    return found


def of(graph, type, layer=None, blueprint=None, **how):
    action = Action(type=type, layer_id=layer, blueprint=blueprint)
    return probabilities(graph, **how)[to_index(action, graph.layer_id, KINDS)]


def test_it_grows_where_the_score_is_highest():
    graph = make_graph(5, growth_score=[0.05, 0.09, 0.02])
    assert of(graph, "load_kernel", "layer.1", "parallel_expansion") > 0.8


def test_it_waits_for_the_first_windows():
    assert of(make_graph(4), "no_op") > 0.95
    assert of(make_graph(5), "load_kernel", "layer.0", "parallel_expansion") > 0.8


def test_an_output_layer_comes_last_though_its_score_is_the_largest():
    shares = [0.03, 0.02, 0.85]
    assert of(make_graph(5, growth_score=shares), "load_kernel", "layer.0", "parallel_expansion") > 0.8
    grown = make_graph(5, growth_score=shares, active_seeds=[1, 1, 0])
    assert of(grown, "load_kernel", "layer.2", "parallel_expansion") > 0.8
    alone = make_graph(5, layers=1)
    assert of(alone, "load_kernel", "layer.0", "parallel_expansion") > 0.8


def test_the_earlier_of_two_like_layers_comes_first():
    graph = make_graph(5, growth_score=[0.1, 0.11, 0.1])
    assert of(graph, "load_kernel", "layer.0", "parallel_expansion") > 0.8


def test_a_poor_blueprint_is_not_loaded_for_want_of_a_better_one():
    graph = make_graph(5, topology=make_topology(offers=["squeeze_excite", "depthwise_separable"]))
    assert of(graph, "no_op") > 0.95


def test_a_layer_that_lost_its_kernel_is_left_alone_for_a_while():
    run = [make_window(index, active_seeds=[1, 0, 0]) for index in range(6)]
    run += [make_window(6), make_window(7)]
    graph = build_graph(run[-1], make_topology(), run[:-1])
    assert of(graph, "load_kernel", "layer.0", "parallel_expansion") < 0.01
    assert of(graph, "load_kernel", "layer.1", "parallel_expansion") > 0.8


def test_a_useful_kernel_is_hardly_ever_taken_out():
    graph = make_graph(9, active_seeds=1, contribution=0.5)
    assert 0 < of(graph, "unload_kernel", "layer.0") < 1e-4


def test_it_grows_one_layer_after_another_and_then_stops():
    topology = make_topology(parameter_budget=20_000)
    active = [0, 0, 0]
    for expected in ("layer.0", "layer.1", "layer.2"):
        graph = make_graph(6, topology=topology, growth_score=[0.3, 0.2, 0.1], active_seeds=active)
        assert of(graph, "load_kernel", expected, "parallel_expansion") > 0.8
        active[int(expected[-1])] = 1
    graph = make_graph(6, topology=topology, growth_score=[0.3, 0.2, 0.1], active_seeds=active, contribution=0.2)
    assert of(graph, "no_op") > 0.95


def test_it_loads_the_next_best_blueprint_where_the_best_is_too_large():
    offers = [("parallel_expansion", 5000), ("bottleneck", 300)]
    topology = make_topology(1, parameter_budget=1000)
    node = topology.layers[0]
    fitted = [node.blueprints[0].model_copy(update={"name": name, "parameters": cost}) for name, cost in offers]
    topology = topology.model_copy(update={"layers": [node.model_copy(update={"blueprints": fitted})]})
    assert of(make_graph(5, topology=topology), "load_kernel", "layer.0", "bottleneck") > 0.8


@pytest.mark.parametrize(
    "doubt",
    [
        {"model": {"validation_accuracy": 0.999}},
        {"windows": 53},  # step 2640 of 3000: too late to pay
        {"active_seeds": [1, 0, 0], "contribution": [-0.01, None, None], "windows": 4},
        {"error_seeds": [1, 1, 1]},
    ],
)
def test_it_does_not_grow_when_the_gain_is_doubtful(doubt):
    found = make_graph(doubt.pop("windows", 5), **doubt)
    loads = sum(of(found, "load_kernel", layer, "parallel_expansion") for layer in found.layer_id)
    assert loads < 0.05


def test_it_does_not_grow_while_the_last_kernel_is_useless():
    def loads(last):
        run = [
            make_window(index, active_seeds=[1, 0, 0], contribution=[worth, None, None])
            for index, worth in enumerate([0.1, 0.1, 0.1, last, last])
        ]
        found = build_graph(run[-1], make_topology(), run[:-1])
        return sum(of(found, "load_kernel", layer, "parallel_expansion") for layer in found.layer_id)

    assert loads(0.1) > 0.5
    assert loads(-0.1) < 0.05


def test_it_hesitates_without_a_growth_score():
    graph = make_graph(5, growth_score=None)
    assert of(graph, "load_kernel", "layer.0", "parallel_expansion") == pytest.approx(0.01, rel=0.2)
    assert of(graph, "no_op") > 0.95


def test_it_unloads_what_has_contributed_nothing_for_long():
    patient = make_graph(3, active_seeds=[1, 0, 0], contribution=[0.0, None, None])
    assert of(patient, "unload_kernel", "layer.0") < 0.01
    spent = make_graph(4, active_seeds=[1, 0, 0], contribution=[0.0, None, None])
    assert of(spent, "unload_kernel", "layer.0") > 0.7
    good = make_graph(8, active_seeds=[1, 0, 0], contribution=[0.1, None, None])
    assert of(good, "unload_kernel", "layer.0") < 0.01


def test_it_fossilizes_rarely():
    graph = make_graph(60, active_seeds=1, contribution=0.3)
    assert 0 < sum(of(graph, "fossilize_kernel", layer) for layer in graph.layer_id) < 0.05


def test_it_slows_a_layer_that_runs_away():
    losses = [{"train_loss": 1.0 + index, "validation_loss": None} for index in range(3)]
    run = [make_window(index, model=loss, update_ratio=[0.5, 1e-3, 1e-3]) for index, loss in enumerate(losses)]
    graph = build_graph(run[-1], make_topology(), run[:-1])
    assert of(graph, "optimize_parameters", "layer.0") == pytest.approx(0.40, abs=0.01)


def test_nothing_but_no_op_is_legal():
    assert of(make_graph(5), "no_op", paused=True) == 1.0


def test_a_large_network_is_grown_as_surely_as_a_small_one():
    graph = make_graph(5, layers=200, growth_score=[5.0 if index == 150 else 0.1 for index in range(200)])
    assert of(graph, "load_kernel", "layer.150", "parallel_expansion") > 0.8


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_every_legal_action_has_a_chance_and_logits_are_finite(data):
    graph = make_graph(
        data.draw(st.integers(1, 9)),
        growth_score=data.draw(st.none() | st.floats(0, 1e6)),
        active_seeds=data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3)),
        contribution=data.draw(st.none() | st.floats(-10, 10)),
        update_ratio=data.draw(st.floats(0, 10)),
        model={"train_loss": data.draw(st.none() | st.floats(-1e6, 1e6))},
    )
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=(n := size(3, KINDS)), max_size=n)))
    mask[0] = True
    logits = baseline_logits(graph, KINDS, mask)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert (np.exp(logits[mask]) > 1e-6).all()
    assert np.exp(logits[mask].astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)
