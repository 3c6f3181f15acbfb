from dataclasses import replace
from typing import Any

import numpy as np

from tamiyo.models.behaviour import Choice
from tamiyo.schemas.adaptation import Action, Veto
from tamiyo.schemas.telemetry import BlueprintOffer
from tamiyo.streams.stages.action_text import MAX_LENGTH
from tamiyo.streams.stages.decisions.explanation import explain_decision
from tests.support.factories import make_graph

OFFER = BlueprintOffer(name="parallel_expansion", parameters=1304, flops=0)
GRAPH = make_graph(1)
GRAPH = GRAPH.model_copy(
    update={
        "step": 220,
        "layer_id": ["0", *GRAPH.layer_id[1:]],
        "health": [0.81, *GRAPH.health[1:]],
        "offers": [[OFFER], *GRAPH.offers[1:]],
        "problematic": [],
        "model_metrics": {"train_loss": 0.7, "validation_loss": 0.9124},
    }
)
LOAD = Action(type="load_kernel", layer_id="0", blueprint="parallel_expansion")
NO_OP = Action(type="no_op")
CHOICE = Choice(
    index=1,
    probabilities=np.array([0.66, 0.34], np.float32),
    log_probability=0.0,
    entropy=0.0,
    uncertainty=0.05,
    predicted_reward=0.12,
    value=0.0,
    method="policy",
    temperature=1.0,
)
NOTE = (
    "Step 220: load parallel_expansion at layer 0 (probability 0.34 of 12 legal actions, policy 3, expected reward "
    "+0.12 +/- 0.05); loss 0.912, health 0.81, 1,304 more parameters."
)


def explain(action: Action = LOAD, choice: Choice = CHOICE, **fields: Any) -> str:
    values: dict[str, Any] = {
        "graph": GRAPH,
        "legal_actions": 12,
        "policy_version": 3,
        "vetoes": [],
        "blocking_vetoes": [],
        "dry_run": False,
    }
    return explain_decision(action, choice=choice, **{**values, **fields})


def test_an_adaptation() -> None:
    assert explain() == NOTE


def test_the_heuristic_decides_if_the_policy_is_uncertain() -> None:
    assert explain(choice=replace(CHOICE, method="baseline")) == NOTE.replace(
        "policy 3,", "heuristic as policy 3 is uncertain,"
    )


def test_a_problematic_layer() -> None:
    graph = GRAPH.model_copy(update={"problematic": ["0"]})
    assert explain(graph=graph) == NOTE.replace("health 0.81,", "health 0.81, problematic layer,")


def test_no_op_is_not_reported_as_unexecuted() -> None:
    expected = (
        "Step 220: make no adaptation (probability 0.66 of 1 legal action, policy 3, expected reward +0.12 +/- 0.05); "
        "loss 0.912."
    )
    assert explain(NO_OP, replace(CHOICE, index=0), legal_actions=1, dry_run=True) == expected


def test_without_a_loss_only_the_layer_is_described() -> None:
    graph = GRAPH.model_copy(update={"model_metrics": {}})
    assert explain(graph=graph) == NOTE.replace("loss 0.912, ", "")
    assert explain(NO_OP, graph=graph).endswith("+0.12 +/- 0.05).")


def test_vetoes_and_dry_run() -> None:
    vetoes = [Veto(by="uncertainty", reason="uncertainty 0.900 is above 0.800"), Veto(by="rate", reason="spent")]
    reasons = "uncertainty 0.900 is above 0.800 (uncertainty); spent (rate)"
    assert explain(dry_run=True) == f"{NOTE} Not executed: dry run."
    assert explain(vetoes=vetoes, dry_run=True) == f"{NOTE} Not executed: {reasons}."
    assert explain(NO_OP, blocking_vetoes=vetoes) == f"Step 220: no adaptation allowed; {reasons}."


def test_an_explanation_fits_its_field() -> None:
    long = [Veto(by="control", reason="x" * 2000)] * 2
    assert len(explain(vetoes=long)) == len(explain(blocking_vetoes=long)) == MAX_LENGTH
