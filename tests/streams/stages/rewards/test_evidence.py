import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.adaptation import AdaptationOutcome
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.evidence import Case, evidence
from tamiyo.streams.stages.rewards.window_summary import WindowSummary
from tests.streams.stages.rewards.runs import GRAPH, LAYER, decide, outcome_of

AT = 600.0


def windows(count: int = 24, **fields: Any) -> list[WindowSummary]:
    """Windows of 50 steps whose log loss falls by 0.1 each until the adaptation, and by 0.2 after it."""
    found = []
    for index in range(count):
        fall = 0.1 * index if index < 12 else 1.2 + 0.2 * (index - 12)
        loss = 2.0 * math.exp(-fall)
        values = {"train_loss": loss, "validation_loss": loss, "step_time_ms": 2.0 if index < 12 else 3.0, **fields}
        found.append(WindowSummary(index, 50.0 * index, 50.0 * index + 50, 1000 * index, **values))
    return found


def case(windows: list[WindowSummary], now: float = 1200.0, **fields: Any) -> Case:
    decision = decide(GRAPH.model_copy(update={"step": 590}), "load_kernel")
    outcome = outcome_of(decision, step=600, before={"loss": 0.8, "parameters": 100.0}, after={"loss": 0.8})
    values: dict[str, Any] = {
        "decision": decision,
        "graph": GRAPH,
        "outcome": outcome,
        "adaptation": ExecutedAdaptation(
            effective_at=AT, layer_id=LAYER, gated=True, parameters_added=50, parameter_budget=1000, uncertainty=0.2
        ),
        "windows": windows,
        "later": [],
        "span_start": AT,
        "now": now,
        "ended": False,
        "baseline_windows": 12,
    }
    return Case(**{**values, **fields})


def test_falls_are_logarithmic_and_signed_by_what_they_save() -> None:
    found = evidence(case(windows()))
    assert found["fall_before_validation_loss"] == pytest.approx(1.1)
    assert found["last_fall_validation_loss"] == pytest.approx(0.1)
    # From the median of the last two windows before (1.05) to that of the last two since (3.3).
    assert found["fall_since_validation_loss"] == pytest.approx(1.2 + 0.2 * 10.5 - 1.05)
    assert found["projected_all"] > 0


def test_the_adaptation_is_described_in_shares() -> None:
    found = evidence(case(windows()))
    assert (found["is_load"], found["is_unload"], found["blueprint_worth"]) == (1, 0, 1)
    assert found["parameters_share"] == pytest.approx(0.05)
    assert found["slower"] == pytest.approx(0.5)


def test_a_paired_latency_shows_how_much_slower_a_step_is_and_what_that_costs_in_loss() -> None:
    paired = [
        replace(w, base_latency_ms={LAYER: 1.0, "other": 3.0}, kernel_latency_ms={LAYER: 2.0} if w.start >= AT else {})
        for w in windows()
    ]
    found = evidence(case(paired))
    assert (found["latency_before"], found["latency_after"]) == (1.0, pytest.approx(1.5))
    assert found["fall_lost_before"] == pytest.approx(found["fall_ahead_before"] / 3)
    assert found["fall_ahead_before"] > 0


def test_compute_counts_slower_steps_from_where_they_are() -> None:
    graph = GRAPH.model_copy(update={"step": 590})
    paired = [
        replace(w, step_time_ms=2.0 if w.start < AT else 3.0, kernel_latency_ms={LAYER: 1 / 3} if w.start >= AT else {})
        for w in windows()
    ]
    found = evidence(case(paired, graph=graph))
    planned = (1200 - 600) / (found["elapsed_share"])
    assert found["compute_left"] == pytest.approx(1 - 600 / planned)
    assert found["compute_left_now"] == pytest.approx(1 - (600 + 1.5 * 600) / planned)


def test_later_adaptations_are_counted_and_an_unload_ends_the_kernel() -> None:
    base = case(windows())
    later: list[tuple[float, AdaptationOutcome]] = [
        (800.0, base.outcome.model_copy(update={"layer_id": "other"})),
        (900.0, base.outcome.model_copy(update={"type": "unload_kernel"})),
    ]
    found = evidence(replace(base, later=later))
    assert (found["later_adaptations"], found["later_loads"], found["removed"]) == (2, 1, 1)
    assert found["kept_share"] == pytest.approx((900 - 600) / (1200 - 600))


def test_the_first_result_of_a_shadow_twin_at_the_layer_is_the_adaptations() -> None:
    made = windows()
    made[17] = replace(made[17], twins={"other": (0.9, 300.0, 0.5)})
    made[18] = replace(made[18], twins={LAYER: (0.3, 300.0, 0.5)})
    made[20] = replace(made[20], twins={LAYER: (0.7, 100.0, 0.5)})
    assert evidence(case(made))["twin"] == 0.3
    assert math.isnan(evidence(case(made, now=900.0))["twin"])  # not yet known
    again = [(620.0, case(made).outcome)]
    assert math.isnan(evidence(case(made, later=again))["twin"])  # measured the adaptation after it
    assert evidence(case(made, later=[(900.0, case(made).outcome)]))["twin"] == 0.3


def test_windows_after_now_are_not_evidence() -> None:
    early = case(windows(), now=900.0)
    other = windows()
    other[18:] = [replace(w, validation_loss=99.0, train_loss=99.0) for w in other[18:]]
    assert evidence(early) == pytest.approx(evidence(replace(early, windows=other)), nan_ok=True)


def test_what_was_not_measured_is_nan_and_not_zero() -> None:
    found = evidence(case(windows(validation_loss=None)))
    for name in ("fall_since_validation_loss", "contribution_before", "gated_all", "latency_after", "twin"):
        assert math.isnan(found[name]), name
    assert math.isfinite(found["fall_since_train_loss"])


def test_the_names_never_change_with_what_is_known() -> None:
    assert list(evidence(case(windows()))) == list(evidence(case([])))


LOSSES = st.none() | st.sampled_from([0.0, 1e-300, 1e-6, 1.0, 1e30])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LOSSES, LOSSES, LOSSES), max_size=30), st.floats(0, 5000), st.booleans())
def test_no_loss_makes_the_evidence_fail_or_infinite(
    values: list[tuple[float | None, float | None, float | None]], now: float, ended: bool
) -> None:
    made = [
        WindowSummary(i, 50.0 * i, 50.0 * i + 50, i, train_loss=a, validation_loss=b, step_time_ms=c or None)
        for i, (a, b, c) in enumerate(values)
    ]
    found = evidence(case(made, now=now, ended=ended))
    assert not any(math.isinf(value) for value in found.values())
