import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.models.actions import kinds, size, to_action
from tamiyo.models.masks import MaskLimits, legal_actions
from tests.support.factories import BLUEPRINTS, make_graph, make_topology

KINDS = kinds(BLUEPRINTS)
LIMITS = MaskLimits()


def legal(graph, **how):
    """The legal actions as (type, layer, blueprint)."""
    mask = legal_actions(graph, KINDS, limits=how.pop("limits", LIMITS), **how)
    assert mask.shape == (size(len(graph.layer_id), KINDS),)
    actions = [to_action(int(index), graph.layer_id, KINDS) for index in np.flatnonzero(mask)]
    return {(str(action.type), action.layer_id, action.blueprint) for action in actions}


def test_a_fresh_layer_can_be_loaded_with_what_is_offered_or_slowed():
    graph = make_graph(layers=1)
    offered = ("parallel_expansion", "bottleneck", "depthwise_separable", "squeeze_excite")
    assert legal(graph) == {
        ("no_op", None, None),
        *(("load_kernel", "layer.0", name) for name in offered),
        ("optimize_parameters", "layer.0", None),
    }


def test_a_load_needs_a_dormant_seed():
    graph = make_graph(layers=2, dormant_seeds=[0, 1])
    assert {layer for type, layer, _ in legal(graph) if type == "load_kernel"} == {"layer.1"}


@pytest.mark.parametrize(("parameters", "fits"), [(574 + 1500, True), (574 + 1501, False)])
def test_a_load_needs_parameters_within_the_budget(parameters, fits):
    graph = make_graph(topology=make_topology(1, parameter_budget=2000), model={"parameters": parameters})
    assert any(type == "load_kernel" for type, *_ in legal(graph)) is fits


def test_unload_needs_an_active_seed_and_fossilize_a_known_gain():
    graph = make_graph(layers=4, active_seeds=[0, 1, 1, 1], contribution=[None, None, -0.1, 0.1])
    actions = legal(graph)
    assert {layer for type, layer, _ in actions if type == "unload_kernel"} == {"layer.1", "layer.2", "layer.3"}
    assert {layer for type, layer, _ in actions if type == "fossilize_kernel"} == {"layer.3"}


def test_a_learning_rate_is_halved_no_further_than_its_floor():
    graph = make_graph(layers=4, learning_rate_scale=[1.0, 0.125, 0.0625, 0.0])
    found = {layer for type, layer, _ in legal(graph) if type == "optimize_parameters"}
    assert found == {"layer.0", "layer.1"}


@pytest.mark.parametrize("by_topology", [True, False])
def test_a_protected_layer_is_left_alone(by_topology):
    topology = make_topology(2, protected=["layer.0"] if by_topology else [])
    actions = legal(make_graph(topology=topology), protected=[] if by_topology else ["layer.0"])
    assert {layer for _, layer, _ in actions} == {None, "layer.1"}


NOTHING = {("no_op", None, None)}


def test_a_paused_run_is_left_alone():
    assert legal(make_graph(), paused=True) == NOTHING


@pytest.mark.parametrize(
    ("host", "installation", "reported", "decided", "allowed"),
    [
        (100, 0, None, None, True),
        (100, 0, 99.0, None, False),
        (100, 0, 100.0, None, True),
        (0, 200, 150.0, None, False),
        (100, 200, 500.0, 199, False),
        (100, 0, None, 99, False),
        (0, 0, 0.0, 0, True),
    ],
)
def test_cooldown(host, installation, reported, decided, allowed):
    graph = make_graph(topology=make_topology(cooldown_steps=host), model={"steps_since_adaptation": reported})
    actions = legal(graph, limits=MaskLimits(cooldown_steps=installation), steps_since_decision=decided)
    assert (actions != NOTHING) is allowed


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_laws(data):
    layers = data.draw(st.integers(1, 4))

    def column(values):
        return data.draw(st.lists(values, min_size=layers, max_size=layers))

    protected = data.draw(st.sets(st.sampled_from([f"layer.{index}" for index in range(layers)])))
    topology = make_topology(
        layers, protected=sorted(protected), parameter_budget=data.draw(st.integers(0, 2000)),
        cooldown_steps=data.draw(st.sampled_from([0, 100])), offers=data.draw(st.lists(st.sampled_from(BLUEPRINTS))),
    )  # fmt: skip
    graph = make_graph(
        3, topology=topology, dormant_seeds=column(st.integers(0, 2)), active_seeds=column(st.integers(0, 2)),
        contribution=column(st.none() | st.floats(-1, 1)), learning_rate_scale=column(st.floats(0, 1)),
        model={
            "parameters": data.draw(st.integers(574, 3000)),
            "steps_since_adaptation": data.draw(st.none() | st.integers(0, 200)),
        },
    )  # fmt: skip
    paused, extra = data.draw(st.booleans()), data.draw(st.sets(st.sampled_from(graph.layer_id)))
    actions = legal(graph, paused=paused, protected=extra)
    assert ("no_op", None, None) in actions
    since = graph.steps_since_adaptation
    if paused or (since is not None and since < graph.cooldown_steps):
        assert actions == NOTHING
    for type, layer, blueprint in actions - NOTHING:
        node = graph.layer_id.index(layer)
        assert layer not in protected | extra
        if type == "load_kernel":
            cost = {offer.name: offer.parameters for offer in graph.offers[node]}[blueprint]
            assert graph.dormant_seeds[node] > 0
            assert graph.parameters - graph.base_parameters + cost <= graph.parameter_budget
        elif type == "optimize_parameters":
            assert graph.learning_rate_scale[node] > LIMITS.learning_rate_floor
        else:
            assert graph.active_seeds[node] > 0
    # More restrictions never make anything legal.
    assert actions <= legal(graph)
