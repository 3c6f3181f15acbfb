"""The reasons of masked actions, from what the history has of the run."""

from pathlib import Path
from typing import Any

from tamiyo.schemas.adaptation import AdaptationDecision, ControlCommand, Veto
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.telemetry import BlueprintOffer
from tamiyo.streams.watch import views
from tamiyo.streams.watch.feeds import RecordingFeed
from tamiyo.streams.watch.history import History
from tests.streams.watch import watched
from tests.support.telemetry import topology

RECORDING = Path(__file__).parents[3] / "data" / "recording-0.1.0"
LAYERS = ["layer.0", "layer.1", "layer.2", "layer.3", "layer.4"]
KINDS = [
    "load_kernel:small",
    "load_kernel:large",
    "load_kernel:odd",
    "unload_kernel",
    "fossilize_kernel",
    "optimize_parameters",
]
NO_KERNEL = "the layer has no active kernel"


def masked(mask: bytes, **fields: Any) -> AdaptationDecision:
    probabilities = Tensor.of([1.0, *[0.0] * (len(mask) - 1)])
    values = {"action_index": 0, "type": "no_op", "layer": None, "layers": LAYERS, "kinds": KINDS, **fields}
    return watched.decision(mask=mask, probabilities=probabilities, **values)


def reasons(history: History, asked: AdaptationDecision) -> dict[tuple[str | None, str], str | None]:
    actions = views.decision(history, "run-1", asked.decision_id)["actions"]
    assert all(each["reason"] is None for each in actions if each["legal"])
    return {(each["layer_id"], each["kind"]): each["reason"] for each in actions if not each["legal"]}


def test_each_rule_of_the_masks_has_its_reason() -> None:
    offers = [
        BlueprintOffer(name="small", parameters=50, flops=1),
        BlueprintOffer(name="large", parameters=950, flops=1),
    ]
    network = topology(LAYERS, run_id="run-1")
    nodes = [
        each.model_copy(update={"blueprints": offers, "protected": each.layer_id == "layer.3"})
        for each in network.layers
    ]
    network = network.model_copy(update={"layers": nodes})
    frame = watched.layer_health(
        90, layers=5, dormant_seeds=[4, 0, 4, 4, 4], active_seeds=[0, 1, 1, 0, 0],
        contribution=[None, -0.1, 0.2, None, None], learning_rate_scale=[1.0, 0.0625, 1.0, 1.0, 1.0],
    )  # fmt: skip
    later = watched.layer_health(150, layers=5, dormant_seeds=[0] * 5)  # after the decision: it explains nothing
    asked = masked(b"\x01\x01" + b"\x00" * 29, orders={"run-1": 1})
    order = ControlCommand(run_id="run-1", time_ms=1, protected_layers=["layer.4"])
    # 100 of the budget's 1,000 parameters are used.
    found = reasons(
        watched.history([(1, network), (1, order), (2, watched.performance(90)), (2, frame), (3, asked), (4, later)]),
        asked,
    )
    assert found["layer.0", "load_kernel:large"] == "it needs 950 parameters, and 900 are left of the budget"
    assert found["layer.0", "load_kernel:odd"] == "the blueprint does not fit the layer"
    assert found["layer.0", "unload_kernel"] == found["layer.0", "fossilize_kernel"] == NO_KERNEL
    assert found["layer.0", "optimize_parameters"] is None  # nothing measured explains it
    assert found["layer.1", "load_kernel:small"] == "the layer has no free seed"
    assert found["layer.1", "fossilize_kernel"] == "its kernel is not known to lower the loss"
    assert found["layer.1", "optimize_parameters"] == "the layer learns at 0.0625 of the optimiser's rate already"
    assert found["layer.2", "fossilize_kernel"] is None
    for layer in ("layer.3", "layer.4"):
        assert {reason for (name, _), reason in found.items() if name == layer} == {"the layer is protected"}


def test_vetoes_of_all_actions_are_the_reasons_of_their_masks() -> None:
    vetoes = [Veto(by="run", reason="the run is over"), Veto(by="rate", reason="3 adaptations within 1000 steps")]
    asked = masked(b"\x01" + b"\x00" * 30, vetoes=vetoes)
    assert set(reasons(watched.history([(1, asked)]), asked).values()) == {
        "the run is over; 3 adaptations within 1000 steps"
    }


def test_nothing_is_known_without_telemetry() -> None:
    asked = masked(b"\x01\x01" + b"\x00" * 29)
    assert set(reasons(watched.history([(1, asked)]), asked).values()) == {None}


def test_every_mask_of_a_recording_is_explained() -> None:
    history = History()
    with RecordingFeed(history, RECORDING) as feed:
        assert feed.wait_until_read(30)
    for row in views.fleet(history)["runs"]:
        for decided in views.run(history, row["run_id"])["decisions"]:
            actions = views.decision(history, row["run_id"], decided["decision_id"])["actions"]
            assert all((each["reason"] is None) == each["legal"] for each in actions), (row["run_id"], decided["step"])
