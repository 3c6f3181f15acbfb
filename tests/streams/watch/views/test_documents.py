"""The documents have what the page needs, in JSON's types."""

import json
from typing import Any

import pytest

from tamiyo.schemas.adaptation import ControlCommand, Veto
from tamiyo.schemas.record import Tensor
from tamiyo.streams.watch import views
from tamiyo.streams.watch.history import Observed
from tests.streams.watch import watched
from tests.support.factories import make_window


def test_a_decision_shows_all_actions_the_most_probable_first() -> None:
    layers, kinds = ["a", "b"], ["load_kernel:low_rank", "unload_kernel"]
    asked = watched.decision(
        layers=layers, kinds=kinds, mask=b"\x01\x01\x00\x00\x01", probabilities=Tensor.of([0.25, 0.5, 0, 0, 0.25]),
        action_index=4, vetoes=[Veto(by="uncertainty", reason="too uncertain")],
    )  # fmt: skip
    found = views.decision(watched.history([(1, asked)]), "run-1", asked.decision_id)
    assert [(each["type"], each["layer_id"], each["blueprint"], each["probability"]) for each in found["actions"]] == [
        ("load_kernel", "a", "low_rank", 0.5),
        ("no_op", None, None, 0.25),
        ("unload_kernel", "b", None, 0.25),
        ("unload_kernel", "a", None, 0.0),
        ("load_kernel", "b", "low_rank", 0.0),
    ]
    assert [each["legal"] for each in found["actions"]] == [True, True, True, False, False]
    assert [each["chosen"] for each in found["actions"]] == [False, False, True, False, False]
    assert found["decision"]["vetoes"] == [{"by": "uncertainty", "reason": "too uncertain"}]
    assert (found["decision"]["seed"], found["actions_left_out"]) == ("1", 0)


def test_of_too_many_actions_the_chosen_one_is_kept() -> None:
    layers = [f"layer.{number}" for number in range(600)]
    count = 601
    asked = watched.decision(
        layers=layers, kinds=["unload_kernel"], mask=b"\x01" * count, probabilities=Tensor.of([1.0 / count] * count),
        action_index=600,
    )  # fmt: skip
    found = views.decision(watched.history([(1, asked)]), "run-1", asked.decision_id)
    assert (len(found["actions"]), found["actions_left_out"]) == (500, 101)
    assert [each["layer_id"] for each in found["actions"] if each["chosen"]] == ["layer.599"]


def test_a_mask_that_is_too_short_breaks_nothing() -> None:
    asked = watched.decision(mask=b"\x01", layers=[], kinds=[], probabilities=Tensor.of([0.5, 0.5]))
    found = views.decision(watched.history([(1, asked)]), "run-1", asked.decision_id)
    assert [each["type"] for each in found["actions"]] == ["no_op"]


def test_the_waterfall_of_a_reward_ends_in_the_weighted_sum() -> None:
    asked = watched.decision()
    records = [(1, asked), (2, watched.reward(asked, 1, 0.4)), (3, watched.reward(asked, 0))]
    found = views.decision(watched.history(records), "run-1", asked.decision_id)["rewards"]
    assert [each["revision"] for each in found] == [0, 1]
    assert [(each["component"], each["contribution"]) for each in found[1]["waterfall"]] == [
        ("accuracy", 0.5), ("cost", pytest.approx(-0.06)),
    ]  # fmt: skip
    assert found[1]["sum"] == pytest.approx(0.44)


def test_unknown_ids_are_refused() -> None:
    history = watched.history([(5, watched.decision())])
    with pytest.raises(views.UnknownIdError, match="there is no run 'other'"):
        views.run(history, "other")
    with pytest.raises(views.UnknownIdError, match="there is no run 'run-1' at that time"):
        views.run(history, "run-1", at_ms=4)
    with pytest.raises(views.UnknownIdError, match="run 'run-1' has no decision 'other'"):
        views.decision(history, "run-1", "other")


def test_policy_versions_have_what_their_decisions_earned() -> None:
    released = [watched.checkpoint(0), watched.checkpoint(1, metrics={
        "losses/total": 0.5, "charts/entropy": 1.0, "gates/finite": 1, "gates/off_policy": 0, "gates_failed/golden": 2,
    })]  # fmt: skip
    history = watched.history()
    history.take(Observed.of(each, place, key="tamiyo") for place, each in enumerate(released))
    pinned = watched.checkpoint(0, pinned=True, issued_by="ann", reason="safe")
    history.take([Observed.of(pinned, 5, key="tamiyo:orders")])
    for number, total in enumerate((0.1, 0.3)):
        asked = watched.decision(f"d{number}", policy_version=1)
        history.take(Observed.of(each, 6) for each in (asked, watched.outcome(asked), watched.reward(asked, 0, total)))
    history.take([Observed.of(watched.decision("n", type="no_op", layer=None, policy_version=7), 6)])
    (policy,) = views.policy(history)["policies"]
    assert policy["orders"] == {"pinned_version": 0, "frozen": False, "issued_by": "ann", "reason": "safe"}
    first, second, unannounced = policy["versions"]
    assert (first["version"], first["decisions"], first["mean_reward"]) == (0, 0, None)
    assert second["gates"] == {"passed": ["finite"], "failed": {"golden": 2}}
    assert (second["losses"], second["charts"]) == ({"total": 0.5}, {"entropy": 1.0})
    assert (second["decisions"], second["executed"], second["mean_reward"]) == (2, 2, pytest.approx(0.2))
    assert second["reward_half_width"] == pytest.approx(1.96 * 0.1, rel=1e-6)
    assert (second["mean_worth"], second["mean_confidence"]) == (pytest.approx(0.02), pytest.approx(0.9))
    assert (unannounced["version"], unannounced["status"], unannounced["decisions"]) == (7, None, 1)


def test_the_installation_counts_records_dead_letters_and_shed_signals() -> None:
    command = ControlCommand(run_id="run-1", time_ms=5, protected_layers=["a"], issued_by="ann")
    window = make_window(0, layers=2)
    history = watched.history([(1, window), (2, window.model_copy(update={"shed": 20})), (3, command)])
    letter = Observed(4, "tamiyo.health.windows.dlq", None, "run-1", reason="planted")
    history.take([letter, Observed(5, "tamiyo.health.windows.late", None, "run-1"), Observed(6, "unknown.dlq")])
    found = views.installation(history)
    topics = {each["name"]: each for each in found["topics"]}
    windows = topics["tamiyo.health.windows"]
    assert (windows["records"], windows["oldest_ms"], windows["newest_ms"]) == (2, 1, 2)
    assert (windows["dead_letters"], windows["late"], windows["writer"]) == (1, 1, "windows")
    assert found["shed"] == {"signals": 40, "shed": 20, "share": pytest.approx(1 / 3)}
    assert found["dead_letters"][-1] == {
        "topic": "tamiyo.health.windows.dlq", "time_ms": 4, "reason": "planted", "run_id": "run-1",
    }  # fmt: skip
    assert found["control"][0]["protected_layers"] == ["a"]
    past = views.installation(history, at_ms=1)
    assert {each["name"]: each["records"] for each in past["topics"]}["tamiyo.health.windows"] == 1
    assert (past["shed"]["shed"], past["dead_letters"], past["control"]) == (0, [], [])


@pytest.mark.parametrize("view", ["fleet", "policy", "installation"])
def test_an_empty_history_has_documents(view: str) -> None:
    make: Any = getattr(views, view)
    for at_ms in (None, 0, 10**14):
        assert json.loads(json.dumps(make(watched.history(), at_ms=at_ms), allow_nan=False))["view"] == view
