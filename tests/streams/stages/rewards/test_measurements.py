import math
from dataclasses import replace

import pytest

from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.measurements import span_components
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

ADAPTATION = ExecutedAdaptation(
    effective_at=400.0, layer_id="conv1", gated=True, parameters_added=0, parameter_budget=1000, uncertainty=0.0
)
BASE_COST = 0.2


def windows(step_times: list[float | None], first: int, **fields: float) -> list[WindowSummary]:
    return [
        WindowSummary(first + n, 50.0 * (first + n), 50.0 * (first + n + 1), 0, step_time_ms=value, **fields)
        for n, value in enumerate(step_times)
    ]


def components(
    before: list[WindowSummary], after: list[WindowSummary], *, next_adaptation_at: float = math.inf
) -> dict[str, float]:
    adaptation = replace(ADAPTATION, next_adaptation_at=next_adaptation_at)
    return span_components(adaptation, 0.0, before, after, after)


def test_a_slower_step_costs_and_reduces_the_speed_beyond_the_allowance() -> None:
    found = components(windows([10.0] * 4, 4), windows([15.0, 14.0, 40.0], 8))
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.5)
    assert found[rc.SPEED] == pytest.approx((10 - 13.5) / 10 - 0.5)  # 1.5 ms a step are allowed


def test_a_change_within_5_percent_is_none() -> None:
    found = components(windows([10.0] * 4, 4), windows([10.4], 8))
    assert (found[rc.COST], found[rc.SPEED]) == (pytest.approx(BASE_COST), 0)


def test_a_change_within_the_scatter_of_the_baseline_is_none() -> None:
    # A median of 10 with a median deviation of 1: three sigmas are 4.4 ms.
    scattered = windows([9.0, 11.0, 9.0, 11.0], 4)
    assert components(scattered, windows([14.4], 8))[rc.COST] == pytest.approx(BASE_COST)
    assert components(scattered, windows([14.5], 8))[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.45)


def test_windows_after_the_next_adaptation_do_not_count() -> None:
    before, after = windows([10.0] * 4, 4), windows([15.0, 40.0, 40.0], 8)
    assert components(before, after, next_adaptation_at=450.0)[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.5)
    assert components(before, after, next_adaptation_at=449.0)[rc.COST] == pytest.approx(BASE_COST)
    assert components(before, after)[rc.COST] == pytest.approx(BASE_COST + 0.2)


def test_the_layers_forward_passes_replace_an_unmeasured_step_time() -> None:
    found = components(windows([None] * 4, 4, layers_ms=10.0), windows([None], 8, layers_ms=15.0))
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.5)
    assert found[rc.SPEED] == pytest.approx((10 - 14.5) / 10 - 0.5)  # 0.5 ms a forward pass are allowed


def test_without_a_latency_on_both_sides_there_is_no_change() -> None:
    found = components(windows([None] * 4, 4), windows([15.0], 8))
    assert (found[rc.COST], found[rc.SPEED]) == (pytest.approx(BASE_COST), 0)


def test_the_latency_variance_changes_the_stability() -> None:
    before = windows([10.0] * 3, 5, latency_variance=1.0)
    assert components(before, windows([10.0], 8, latency_variance=3.0))[rc.STABILITY] == pytest.approx(-0.2)
    assert components(before, windows([10.0], 8))[rc.STABILITY] == 0


def test_fewer_errors_are_stability_and_more_are_a_risk() -> None:
    clean, failing = windows([10.0] * 2, 6), [replace(w, errors={"conv1": 0.1}) for w in windows([10.0] * 2, 8)]
    better = components(failing, clean)
    assert (better[rc.STABILITY], better[rc.RISK]) == (pytest.approx(0.2), 0)
    worse = components(clean, [failing[0], clean[0]])
    assert (worse[rc.STABILITY], worse[rc.RISK]) == (0, pytest.approx(5 * 0.05))


def paired(
    step_times: list[float | None], first: int, kernels: dict[str, float], bases: dict[str, float]
) -> list[WindowSummary]:
    return [replace(w, kernel_latency_ms=kernels, base_latency_ms=bases) for w in windows(step_times, first)]


def test_a_pair_replaces_the_comparison_of_step_times() -> None:
    after = paired([50.0], 8, {"conv1": 2.0, "head": 0.0}, {"conv1": 1.0, "head": 3.0})
    found = components(windows([10.0] * 4, 4), after)
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 2 / 4)  # 6 ms with the kernel, 4 without
    assert found[rc.SPEED] == pytest.approx((4 - 5.5) / 4 - 0.5)  # 0.5 ms a forward pass are allowed


def test_a_pair_charges_what_the_layers_kernels_add_since_the_adaptation() -> None:
    before = paired([10.0] * 2, 6, {"conv1": 1.5}, {"conv1": 2.0, "head": 1.0})
    after = paired([10.0], 8, {"conv1": 3.0, "head": 0.0}, {"conv1": 1.0, "head": 2.0})
    found = components(before, after)
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 1.5 / 4.5)
    before = paired([10.0] * 2, 6, {"head": 0.5}, {"conv1": 2.0, "head": 1.0})
    assert components(before, after)[rc.COST] == pytest.approx(BASE_COST + 0.2 * 1.0)


def test_another_layers_kernels_are_not_charged() -> None:
    after = paired([10.0], 8, {"conv1": 1.0, "head": 5.0}, {"conv1": 1.0, "head": 3.0})
    assert components(windows([10.0] * 4, 4), after)[rc.COST] == pytest.approx(BASE_COST + 0.2 * 1 / 9)


def test_an_unloaded_kernel_speeds_up_and_a_permanent_one_changes_nothing() -> None:
    ungated = replace(ADAPTATION, gated=False)
    before = paired([10.0] * 2, 6, {"conv1": 2.0, "head": 0.0}, {"conv1": 1.0, "head": 3.0})
    unloaded = paired([10.0], 8, {"conv1": 0.0, "head": 0.0}, {"conv1": 1.0, "head": 3.0})
    found = span_components(ungated, 0.0, before, unloaded, unloaded)
    assert (found[rc.COST], found[rc.SPEED]) == (pytest.approx(BASE_COST), pytest.approx(2 / 6))
    permanent = paired([10.0], 8, {"conv1": 0.0, "head": 0.0}, {"conv1": 3.0, "head": 3.0})
    found = span_components(ungated, 0.0, before, permanent, permanent)
    assert (found[rc.COST], found[rc.SPEED]) == (pytest.approx(BASE_COST), 0)


def test_without_a_pair_of_the_layer_step_times_are_compared() -> None:
    elsewhere = paired([15.0], 8, {"head": 0.0}, {"head": 3.0})
    found = components(windows([10.0] * 4, 4), elsewhere)
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.5)
    ungated = replace(ADAPTATION, gated=False)  # its forward pass before is not known
    after = paired([15.0], 8, {"conv1": 0.0}, {"conv1": 1.0})
    found = span_components(ungated, 0.0, windows([10.0] * 4, 4), after, after)
    assert found[rc.COST] == pytest.approx(BASE_COST + 0.2 * 0.5)
