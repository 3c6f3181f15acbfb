"""The history accepts records in any order, keeps so many, and can be read as of a past time."""

import math
import threading
from typing import Any

import pytest

from tamiyo.schemas.adaptation import Action, ControlCommand, Veto
from tamiyo.schemas.codec import encode
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.topics import GRAPHS, LAYER_HEALTH, MODEL_PERFORMANCE, WINDOWS
from tamiyo.streams.watch import views
from tamiyo.streams.watch.history import History, Observed
from tamiyo.streams.watch.history import history as module
from tamiyo.streams.watch.history import runs as run_bounds
from tamiyo.streams.watch.history.decoding import decoded
from tamiyo.streams.watch.history.runs import QUIET_MS
from tests.streams.watch import watched
from tests.support.factories import make_graph, make_topology, make_window


def row(history: History, run_id: str = "run-1", at_ms: int | None = None) -> dict[str, Any]:
    """Return a run's row of the fleet."""
    rows: dict[str, dict[str, Any]] = {each["run_id"]: each for each in views.fleet(history, at_ms=at_ms)["runs"]}
    return rows[run_id]


def test_an_outcome_may_come_before_its_decision_and_a_reward_before_both() -> None:
    asked = watched.decision()
    history = watched.history([(3, watched.reward(asked)), (2, watched.outcome(asked))])
    assert views.run(history, "run-1")["decisions"] == []
    assert row(history)["adaptations"] == 0
    history.take([Observed.of(asked, 1)])
    (found,) = views.run(history, "run-1")["decisions"]
    assert (found["status"], found["reward"], found["worth"]) == ("executed", 0.25, 0.02)
    assert (row(history)["adaptations"], row(history)["last_reward"], row(history)["worth"]) == (1, 0.25, 0.02)


def test_records_that_are_published_again_count_once() -> None:
    asked = watched.decision()
    twice = [(1, asked), (2, watched.outcome(asked)), (3, watched.reward(asked))] * 2
    assert (row(watched.history(twice))["decisions"], row(watched.history(twice))["worth"]) == (1, 0.02)


def test_the_highest_revision_of_a_reward_is_current() -> None:
    asked = watched.decision()
    late = [(5, watched.reward(asked, 1, 0.5, worth=0.04)), (6, watched.reward(asked, 0, 0.1, worth=0.01))]
    history = watched.history([(1, asked), (2, watched.outcome(asked)), *late])
    assert (row(history)["last_reward"], row(history)["worth"]) == (0.5, 0.04)


@pytest.mark.parametrize(
    ("fields", "more", "expected"),
    [
        ({"type": "no_op", "layer": None, "blueprint": None}, [], "none"),
        (
            {
                "type": "no_op", "layer": None, "blueprint": None,
                "proposed": Action(type="unload_kernel", layer_id="0"), "vetoes": [Veto(by="control", reason="paused")],
            },
            [],
            "vetoed",
        ),
        ({"dry_run": True}, [], "dry_run"),
        ({}, [], "pending"),
        ({}, ["executed"], "executed"),
        ({}, ["refused"], "refused"),
        ({}, ["failed"], "failed"),
    ],
)  # fmt: skip
def test_the_status_of_a_decision(fields: dict[str, Any], more: list[str], expected: str) -> None:
    asked = watched.decision(**fields)
    history = watched.history([(1, asked), *((2, watched.outcome(asked, status)) for status in more)])
    (found,) = views.run(history, "run-1")["decisions"]
    assert (found["status"], found["reason"]) == (expected, "planted" if expected in ("refused", "failed") else "")


def test_a_run_that_starts_again_shows_no_tangle() -> None:
    first = [(step, watched.performance(step)) for step in range(0, 100, 10)]
    again = [(1_000 + step, watched.performance(step, train_loss=9.0)) for step in range(50, 80, 10)]
    found = views.run(watched.history(first + again), "run-1")["series"]
    assert found["step"] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert found["train_loss"][5:] == [9.0, 9.0, 9.0]
    assert found["replace"]


def test_states_of_a_run() -> None:
    now_ms = watched.NOW_MS
    history = watched.history([(now_ms - 10, watched.performance(10))])
    assert row(history)["state"] == "training"
    history.take([Observed.of(ControlCommand(run_id="*", time_ms=1, paused=True), now_ms - 5, key="*")])
    assert row(history)["state"] == "paused"
    assert row(history, at_ms=now_ms - 6)["state"] == "training"
    history.take([Observed(now_ms - 4, "tamiyo.control", None, "*")])
    assert row(history)["state"] == "training"
    history.take([Observed.of(watched.performance(20, final=True), now_ms - 3)])
    assert row(history)["state"] == "finished"
    history.take([Observed.of(make_topology(2), now_ms - 2)])
    assert row(history)["state"] == "training"
    assert row(history, at_ms=now_ms - 2 + QUIET_MS + 1)["state"] == "silent"


def test_a_run_that_becomes_silent_is_a_change() -> None:
    clock = [1_000]
    history = History(clock=lambda: clock[0])
    history.take([Observed.of(watched.performance(10), 1_000)])
    revision = history.revision
    history.tick()
    assert history.revision == revision
    clock[0] += QUIET_MS + 1
    history.tick()
    (found,) = views.fleet(history, after=revision)["runs"]
    assert found["state"] == "silent"
    revision = history.revision
    history.tick()
    assert history.revision == revision


def test_of_too_many_runs_a_finished_one_goes_first() -> None:
    history = watched.history(max_runs=3)
    for place, name in enumerate(("a", "b", "c")):
        history.take([Observed.of(watched.performance(1, run_id=name, final=name == "b"), place)])
    revision = history.revision
    history.take([Observed.of(watched.performance(1, run_id="d"), 9)])
    changes = views.fleet(history, after=revision)
    assert (changes["removed"], [each["run_id"] for each in changes["runs"]]) == (["b"], ["d"])
    history.take([Observed.of(watched.performance(1, run_id="e"), 9)])
    assert list(history.runs) == ["c", "d", "e"]


def test_decisions_are_bounded_and_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_bounds, "MAX_DECISIONS", 5)
    history = watched.history(max_details=2)
    for number in range(8):
        asked = watched.decision(f"d{number}", 10 * number)
        records = (asked, watched.outcome(asked), watched.reward(asked, 0), watched.reward(asked, 1))
        history.take(Observed.of(record, number) for record in records)
    found = views.run(history, "run-1")
    assert [each["step"] for each in found["decisions"]] == [30, 40, 50, 60, 70]
    assert (found["run"]["decisions"], found["run"]["adaptations"]) == (8, 8)
    assert found["run"]["worth"] == pytest.approx(8 * 0.02)
    kept = [views.decision(history, "run-1", each["decision_id"]) for each in found["decisions"]]
    assert [each["details_kept"] for each in kept] == [False, False, False, True, True]
    assert [len(each["rewards"]) for each in kept] == [1, 1, 1, 2, 2]
    assert [bool(each["actions"]) for each in kept] == [False, False, False, True, True]
    assert all(each["outcome"]["status"] == "executed" for each in kept)


def test_decisions_are_bounded_over_all_runs() -> None:
    history = watched.history(max_decisions=4)
    for number in range(6):
        history.take([Observed.of(watched.decision(f"d{number}", run_id=f"run-{number % 2}"), number)])
    assert sum(len(run.decisions) for run in history.runs.values()) == 4
    assert row(history, "run-0")["decisions"] == row(history, "run-1")["decisions"] == 3


def test_series_of_the_longest_quiet_run_are_thinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_RECORDS", 50)
    history = watched.history(max_cells=20_000)
    for name in ("old", "new"):
        frames = (watched.performance(step, run_id=name) for step in range(0, 10_000, 10))
        history.take(Observed.of(frame, place) for place, frame in enumerate(frames))
    old, new = (len(views.run(history, name)["series"]["step"]) for name in ("old", "new"))
    assert (old < new, new) == (True, 1_000)
    assert sum(run.cells for run in history.runs.values()) < 21_000


def test_memory_does_not_grow_with_the_length_of_a_run() -> None:
    history = watched.history()
    cells = []
    for part in range(4):
        for step in range(part * 3_000, (part + 1) * 3_000):
            history.take([Observed.of(watched.performance(step), step)])
        cells.append(history.runs["run-1"].cells)
    assert max(cells) <= 2_001 * 14
    assert len(history.runs["run-1"].sparks["train_loss"]) <= run_bounds.SPARK_POINTS


def test_growth_scores_last_until_they_are_measured_again() -> None:
    frames = [
        (1, watched.layer_health(10, growth_score=[0.25, None])),
        (2, watched.layer_health(20)),
        (3, watched.layer_health(30, growth_score=[None, 0.5], layers=2)),
    ]
    layers = views.run(watched.history(frames), "run-1")["layers"]
    assert (layers["step"], layers["growth_score"]) == (30, [0.25, 0.5])
    assert views.run(watched.history(frames), "run-1", at_ms=2)["layers"]["growth_score"] == [0.25, None]


def test_layers_are_shown_in_the_order_of_the_topology() -> None:
    frame = watched.layer_health(10, layer_id=["layer.1", "layer.0"], gradient_norm=[1.0, 0.0])
    for records in ([(1, frame), (2, make_topology(2))], [(1, make_topology(2)), (2, frame)]):
        layers = views.run(watched.history(records), "run-1")["layers"]
        assert (layers["layer_id"], layers["gradient_norm"]) == (["layer.0", "layer.1"], [0.0, 1.0])


def test_the_heat_map_joins_graphs_with_the_measurements_before_them() -> None:
    graph = make_graph(topology=make_topology(2), health=[0.25, 0.75])
    records = [(1, watched.layer_health(step, gradient_norm=[step / 100, 0.0])) for step in (10, 20, 30)]
    history = watched.history([*records, (2, graph.model_copy(update={"step": 25}))])
    heat = views.run(history, "run-1")["heat"]
    assert (heat["step"], heat["health"], heat["gradient_norm"]) == ([25], [[0.25, 0.75]], [[0.2, 0.0]])
    without = views.run(watched.history(records), "run-1")["heat"]
    assert (without["step"], without["health"][0]) == ([10, 20, 30], [None, None])


def test_a_kernel_lives_until_it_is_unloaded() -> None:
    asked = watched.decision()
    unload = watched.decision("d2", 200, type="unload_kernel", layer="0")
    steps = [
        (1, asked, "loading"),
        (2, watched.kernel(asked), "loading"),
        (3, watched.outcome(asked), "active"),
        (4, unload, "active"),
        (5, watched.outcome(unload, kernel_id=asked.kernel_id), "unloaded"),
    ]
    history = watched.history((time_ms, record) for time_ms, record, _ in steps)
    for time_ms, _, status in steps:
        (lane,) = views.run(history, "run-1", at_ms=time_ms)["kernels"]
        assert lane["status"] == status
    assert (lane["requested_step"], lane["active_step"], lane["ended_step"], lane["parameters"]) == (100, 101, 201, 77)


def test_an_error_may_unload_a_kernel() -> None:
    asked = watched.decision()
    ended = watched.error(150, kernel_id=asked.kernel_id, strategy="unload")
    (lane,) = views.run(watched.history([(1, asked), (2, watched.outcome(asked)), (3, ended)]), "run-1")["kernels"]
    assert (lane["status"], lane["ended_step"]) == ("unloaded", 150)


def test_the_projection_is_the_trend_of_the_windows_before() -> None:
    losses = [2.0 * math.exp(-0.05 * index) for index in range(20)]
    windows = [
        (index, make_window(index, model={"validation_loss": loss, "train_loss": loss}))
        for index, loss in enumerate(losses)
    ]
    asked = watched.decision(step=500)
    records = [*windows, (50, asked), (51, watched.outcome(asked)), (52, watched.performance(2_000))]
    (line,) = views.run(watched.history(records), "run-1")["projections"]
    assert (line["decision_id"], line["step"][0], line["step"][-1]) == (asked.decision_id, 501, 1_101)
    assert line["loss"][0] == pytest.approx(2.0 * math.exp(-0.05 * (501 / 50 - 0.5)), rel=1e-3)
    assert line["loss"] == sorted(line["loss"], reverse=True)
    assert views.run(watched.history(records), "run-1", at_ms=50)["projections"] == []


def test_views_never_have_numbers_that_json_has_not() -> None:
    odd = watched.layer_health(10, gradient_norm=[1e300, 1e-300])
    layers = views.run(watched.history([(1, odd)]), "run-1")["layers"]
    assert layers["gradient_norm"] == [None, 0.0]


@pytest.mark.parametrize("topic", [LAYER_HEALTH, GRAPHS, WINDOWS], ids=lambda topic: topic.name)
def test_a_frame_that_is_no_record_is_refused(topic: Any) -> None:
    for value in (b"", b"garbage", encode(watched.performance(1))):
        with pytest.raises(SchemaError):
            decoded(topic.name, value)


def test_columns_of_unequal_length_are_refused() -> None:
    damaged = watched.layer_health(10).model_copy(update={"alpha": [0.0]})
    with pytest.raises(SchemaError, match="expected columns of 2 layers"):
        decoded(LAYER_HEALTH.name, encode(damaged))
    damaged = watched.layer_health(10).model_copy(update={"step": 2**60})
    with pytest.raises(SchemaError, match=r"expected a step in 0\.\.2\*\*53"):
        decoded(LAYER_HEALTH.name, encode(damaged))


@pytest.mark.parametrize("changes", [{"run_id": ""}, {"run_id": "a" * 201}, {"layer_id": ["x" * 201, "y"]}])
def test_ids_are_as_short_as_those_of_records(changes: dict[str, Any]) -> None:
    damaged = watched.layer_health(10).model_copy(update=changes)
    with pytest.raises(SchemaError, match="expected an id of 1 to 200 characters"):
        decoded(LAYER_HEALTH.name, encode(damaged))


def test_counts_of_any_size_can_be_added() -> None:
    huge = make_window(0).model_copy(update={"signals": 2**62, "shed": 2**62})
    found = views.installation(watched.history((time_ms, huge) for time_ms in range(5)))["shed"]
    assert (found["signals"], found["share"]) == (5 * 2**40, 0.5)


def test_subscribers_are_called_until_they_end() -> None:
    history, calls = watched.history(), []
    end = history.subscribe(lambda: calls.append(1))
    history.take([])
    end()
    history.take([])
    assert calls == [1]


def test_views_can_be_made_while_records_come() -> None:
    history, stop, failures = watched.history(max_runs=5), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                for found in views.fleet(history)["runs"]:
                    views.run(history, found["run_id"])
            except views.UnknownIdError:
                continue
            except Exception as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(400):
        history.take([Observed.of(watched.performance(step, run_id=f"run-{step % 7}"), step)])
    stop.set()
    reader.join()
    assert not failures
    assert MODEL_PERFORMANCE.name in history.topics.topics
