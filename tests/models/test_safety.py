import pytest

from tamiyo.models.masks import MaskLimits
from tamiyo.models.safety import SafetyLimits, SafetyMonitor
from tamiyo.schemas.adaptation import Action
from tests.support.factories import make_graph, make_topology

GRAPH = make_graph(5)
LOAD = Action(type="load_kernel", layer_id="layer.0", blueprint="parallel_expansion")


def reasons(action, confidence=0.9, graph=GRAPH, monitor=None, **how):
    return [(veto.by, veto.reason) for veto in (monitor or SafetyMonitor()).validate(action, confidence, graph, **how)]


def test_the_specifications_dangerous_decision_is_refused():
    action = Action(type="experimental_modification", layer_id="critical_layer")
    monitor = SafetyMonitor(protected=["critical_layer"])
    for graph in (None, GRAPH):
        found = reasons(action, 0.99, graph, monitor)
        assert any("experimental_modification is not a type of adaptation" in reason for _, reason in found)
        assert any("critical_layer is protected" in reason for _, reason in found)
        assert {by for by, _ in found} == {"safety_monitor"}
    assert reasons(action, 0.99)  # and without anybody having named the layer


def test_a_legal_load_passes_and_no_op_always_does():
    assert reasons(LOAD) == []
    assert reasons(Action(type="no_op"), 0.0, None, paused=True, recent_adaptations=1000) == []


def test_too_little_confidence():
    assert reasons(LOAD, 0.2) == []
    assert reasons(LOAD, 0.19) == [("uncertainty", "uncertainty 0.810 is above 0.800")]
    assert reasons(LOAD, float("nan"))[0][0] == "uncertainty"


@pytest.mark.parametrize(
    ("action", "how", "match"),
    [
        (LOAD.model_copy(update={"layer_id": "layer.9"}), {}, "layer.9 is not in graph"),
        (LOAD.model_copy(update={"layer_id": None}), {}, "names no layer"),
        (LOAD.model_copy(update={"blueprint": None}), {}, "names no blueprint"),
        (LOAD.model_copy(update={"blueprint": "low_rank"}), {}, "not legal"),
        (Action(type="unload_kernel", layer_id="layer.0"), {}, "not legal"),
        (Action(type="fossilize_kernel", layer_id="layer.0"), {}, "not legal"),
        (LOAD, {"paused": True}, "paused"),
        (LOAD, {"protected": ["layer.0"]}, "layer.0 is protected"),
        (LOAD, {"graph": make_graph(topology=make_topology(protected=["layer.0"]))}, "layer.0 is protected"),
        (LOAD, {"graph": make_graph(topology=make_topology(parameter_budget=10))}, "not legal"),
        (LOAD, {"graph": None}, "no graph"),
        (LOAD, {"recent_adaptations": 20}, "rate budget is spent"),
    ],
)
def test_what_is_refused(action, how, match):
    found = reasons(action, 0.9, how.get("graph", GRAPH), **{k: v for k, v in how.items() if k != "graph"})
    assert len(found) == 1
    assert found[0][0] == "safety_monitor"
    assert match in found[0][1]


def test_its_own_limits_hold():
    monitor = SafetyMonitor(SafetyLimits(max_decision_uncertainty=0.05, max_adaptations=0))
    assert [by for by, _ in reasons(LOAD, 0.9, monitor=monitor)] == ["safety_monitor", "uncertainty"]
    cooling = SafetyMonitor(SafetyLimits(masks=MaskLimits(cooldown_steps=100)))
    assert "cooldown" in reasons(LOAD, monitor=cooling, steps_since_decision=99)[0][1]
    assert reasons(LOAD, monitor=cooling, steps_since_decision=100) == []
