"""What the host refuses, whatever was decided."""

from typing import Any

import pytest
import torch

from tamiyo.host._adaptation.limits import Limits
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.schemas.errors import AdaptationRefused
from tests.support.layers import kernel
from tests.support.runs import decision, order, settings

BUDGET = 10_000


def layer(layer_id: str = "0") -> KasminaLayer:
    return KasminaLayer(layer_id=layer_id, input_size=5, output_size=7, num_seeds=2, ramp_steps=0)


def load(target: KasminaLayer) -> None:
    target.load_kernel(kernel(target.spec), kernel_id="ab" * 4, blueprint="bottleneck", step=0)


def limits(target: KasminaLayer, budget: int = BUDGET, **more: Any) -> Limits:
    return Limits(
        {"0": target},
        settings(**more),
        parameter_budget=budget,
        protected={"critical_layer"},
        blueprints={"0": ("parallel_expansion", "low_rank", "bottleneck")},
    )


def refusal(of: Limits, decided: Any, *, steps_since: int | None = None, **more: Any) -> str:
    with pytest.raises(AdaptationRefused) as caught:
        of.check(decided, steps_since=steps_since, **more)
    return caught.value.limit


def test_an_ordinary_load_is_allowed() -> None:
    limits(layer()).check(decision(), steps_since=None)


def test_the_dangerous_decision_of_the_specification_is_refused_for_its_type_and_for_its_layer() -> None:
    chosen = limits(layer())
    dangerous = decision(type="experimental_modification", layer="critical_layer", confidence=0.99, uncertainty=0.01)
    assert refusal(chosen, dangerous) == "unknown_type"
    assert refusal(chosen, decision(layer="critical_layer")) == "protected_layer"


def test_targets_and_blueprints_must_exist() -> None:
    chosen = limits(layer())
    assert refusal(chosen, decision(layer="7")) == "unknown_layer"
    assert refusal(chosen, decision(type="unload_kernel", layer=None)) == "unknown_layer"
    assert refusal(chosen, decision(blueprint="squeeze_excite")) == "unknown_blueprint"
    assert refusal(chosen, decision(kernel_id=None)) == "no_kernel_id"


def test_control_commands_apply_until_replaced() -> None:
    chosen = limits(layer())
    chosen.take_command(order(time_ms=5, paused=True))
    assert refusal(chosen, decision()) == "paused"
    chosen.take_command(order(time_ms=4))  # older than what stands
    assert refusal(chosen, decision()) == "paused"
    chosen.take_command(order(time_ms=6, dry_run=True))
    assert refusal(chosen, decision()) == "dry_run"
    chosen.take_command(order(time_ms=7, protected_layers=["0"]))
    assert refusal(chosen, decision()) == "protected_layer"
    chosen.take_command(order(time_ms=8))
    chosen.check(decision(), steps_since=None)


def test_an_order_of_the_same_time_replaces_the_first() -> None:
    """So a removed order, which arrives as one of its own time that forbids nothing, is lifted."""
    chosen = limits(layer())
    chosen.take_command(order("*", time_ms=5, paused=True))
    chosen.take_command(order("*", time_ms=5))
    chosen.check(decision(), steps_since=None)


def test_a_command_for_all_runs_applies_beside_the_runs_own() -> None:
    chosen = limits(layer())
    chosen.take_command(order("*", time_ms=1, paused=True))
    chosen.take_command(order(time_ms=2))
    assert refusal(chosen, decision()) == "paused"


def test_a_dry_run_decision_is_not_executed() -> None:
    assert refusal(limits(layer()), decision(dry_run=True)) == "dry_run"


def test_the_cooldown_separates_two_adaptations() -> None:
    chosen = limits(layer(), cooldown_steps=100)
    assert refusal(chosen, decision(), steps_since=99) == "cooldown"
    chosen.check(decision(), steps_since=100)


def test_the_budget_counts_what_has_grown_and_what_would_be_added() -> None:
    target = layer()
    added = 7 * 8 * (5 + 7) + 56 + 7  # parallel expansion of Linear(5, 7), 56 wide
    limits(target, added).check(decision(), steps_since=None)
    assert refusal(limits(target, added - 1), decision()) == "parameter_budget"
    assert refusal(limits(target, added), decision(), parameters=added + 1) == "parameter_budget"
    load(target)
    assert refusal(limits(target, added), decision()) == "parameter_budget"
    limits(target, added + target.kernel_parameters).check(decision(), steps_since=None)


def test_seeds_and_kernels_are_counted() -> None:
    target = layer()
    load(target)
    assert refusal(limits(target, max_kernels=1), decision()) == "max_kernels"
    limits(target).check(decision(), steps_since=None)
    load(target)
    assert refusal(limits(target), decision()) == "no_dormant_seed"


def test_a_kernel_is_required_to_unload_or_fossilize() -> None:
    target = layer()
    chosen = limits(target)
    assert refusal(chosen, decision(type="unload_kernel")) == "nothing_to_unload"
    assert refusal(chosen, decision(type="fossilize_kernel")) == "nothing_to_fossilize"
    load(target)
    chosen.check(decision(type="unload_kernel"), steps_since=None)
    chosen.check(decision(type="fossilize_kernel"), steps_since=None)
    target.fossilize()
    assert refusal(chosen, decision(type="unload_kernel")) == "nothing_to_unload"
    assert refusal(chosen, decision(type="fossilize_kernel")) == "nothing_to_fossilize"


def test_a_layer_is_slowed_down_to_a_sixteenth_and_no_further() -> None:
    chosen, slower = limits(layer()), decision(type="optimize_parameters")
    chosen.check(slower, scale=1 / 8, steps_since=None)
    assert refusal(chosen, slower, scale=1 / 16) == "learning_rate_floor"


def test_a_refusal_changes_nothing() -> None:
    target = layer()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    refusal(limits(target, 0), decision())
    after = target.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
