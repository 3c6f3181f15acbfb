"""Decisions are executed once each, and every one has an outcome."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host._adaptation.executor import Executor
from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._adaptation.limits import Limits
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes.counterfactual import HeldOutBatch
from tamiyo.schemas.adaptation import AdaptationOutcome, KernelStatus, OutcomeStatus
from tamiyo.schemas.identity import outcome_id
from tests.support.runs import RUN, STORE, compiled, decision, order, settings


class Bench:
    """An executor over one layer, with its own clock."""

    def __init__(self, *, held_out: bool = True, **more: Any) -> None:
        torch.manual_seed(0)
        self.layer = KasminaLayer(layer_id="0", input_size=5, output_size=7, num_seeds=2, ramp_steps=2)
        self.model = nn.Sequential(self.layer, nn.Linear(7, 3))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.growing = GrowingOptimizer(self.optimizer)
        self.outcomes: list[AdaptationOutcome] = []
        self.now = 0.0
        self.settings = settings(**more)
        self.cache = KernelCache(KernelStore(STORE))
        inputs, labels = torch.randn(20, 5), torch.randint(0, 3, (20,))
        self.executor = Executor(
            RUN,
            {"0": self.layer},
            growing=self.growing,
            cache=self.cache,
            limits=Limits(
                {"0": self.layer},
                self.settings,
                parameter_budget=10_000,
                protected=(),
                blueprints={"0": ("parallel_expansion", "bottleneck", "low_rank")},
            ),
            settings=self.settings,
            held_out=HeldOutBatch(self.model, F.cross_entropy, inputs, labels) if held_out else None,
            publish=self.outcomes.append,
            clock=lambda: self.now,
        )

    def decide(self, name: str = "d1", *, step: int = 10, run: bool = True, **more: Any) -> AdaptationOutcome | None:
        """Decide, compile if needed, execute; return the outcome, if there is one."""
        decided, before = decision(name, **more), len(self.outcomes)
        self.executor.take(decided, step)
        if decided.type == "load_kernel":
            self.executor.take(compiled(decided, self.layer.spec), step)
        if run:
            self.executor.run(step)
        return self.outcomes[before] if len(self.outcomes) > before else None


def test_a_load_is_executed_and_published_with_before_and_after() -> None:
    bench = Bench()
    outcome = bench.decide(step=12)
    assert outcome is not None
    assert (outcome.status, outcome.reason, outcome.step) == (OutcomeStatus.EXECUTED, "", 12)
    assert outcome.outcome_id == outcome_id(decision().decision_id)
    assert outcome.kernel_id == decision().kernel_id == bench.layer.seeds[0].kernel_id
    assert outcome.before["loss"] == pytest.approx(outcome.after["loss"], abs=1e-6)
    assert outcome.after["parameters"] - outcome.before["parameters"] == bench.layer.kernel_parameters > 0
    assert outcome.before["latency_ms"] > 0
    assert outcome.duration_ms > 0
    trained = {p for group in bench.optimizer.param_groups for p in group["params"]}
    assert set(bench.layer.kernels.parameters()) <= trained
    assert bench.layer.get_layer_stats()["state_stats"]["active_seeds"] == 1
    assert bench.executor.last_step == 12
    assert bench.executor.steps_since(20) == 8


def test_a_repeated_decision_is_executed_once() -> None:
    bench = Bench()
    for step in (10, 11, 12):
        bench.decide(step=step)
    assert len(bench.outcomes) == 1
    assert len(bench.layer.kernels) == 1
    assert (bench.executor.counts.decisions, bench.executor.counts.repeated) == (1, 2)
    assert bench.executor.counts.executed == 1


def test_decision_and_kernel_may_arrive_in_either_order() -> None:
    bench = Bench()
    decided = decision()
    bench.executor.take(compiled(decided, bench.layer.spec), 1)
    assert not bench.executor.run(1)
    bench.executor.take(decided, 2)
    assert bench.executor.run(2)


def test_a_missing_kernel_is_a_failure_after_the_timeout() -> None:
    bench = Bench(compile_timeout_s=10.0)
    bench.executor.take(decision(), 10)
    bench.now = 9.9
    assert not bench.executor.run(11)
    assert bench.executor.open == 1
    bench.now = 10.0
    assert not bench.executor.run(12)
    assert [(o.status, o.reason) for o in bench.outcomes] == [
        (OutcomeStatus.FAILED, "no_kernel: no kernel arrived within 10 s")
    ]
    assert bench.executor.open == 0
    assert bench.executor.last_step is None


def test_no_op_has_no_outcome() -> None:
    bench = Bench()
    assert bench.decide(type="no_op", layer=None) is None
    assert bench.executor.counts.decisions == 1


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"dry_run": True}, "dry_run: "),
        ({"layer": "9", "type": "unload_kernel"}, "unknown_layer: "),
        ({"type": "experimental_modification"}, "unknown_type: "),
        ({"type": "fossilize_kernel"}, "nothing_to_fossilize: "),
    ],
)
def test_a_forbidden_decision_is_refused_with_the_limit(more: dict[str, Any], reason: str) -> None:
    bench = Bench()
    outcome = bench.decide(**more)
    assert outcome is not None
    assert outcome.status is OutcomeStatus.REFUSED
    assert outcome.reason.startswith(reason)
    assert (outcome.before, outcome.after) == ({}, {})


def test_limits_are_checked_again_when_the_kernel_has_arrived() -> None:
    bench = Bench()
    decided = decision()
    bench.executor.take(decided, 10)
    bench.executor.take(order(paused=True), 11)
    bench.executor.take(compiled(decided, bench.layer.spec), 12)
    assert not bench.executor.run(12)
    assert bench.outcomes[0].reason.startswith("paused: ")
    assert not bench.layer.kernels


def test_cooldown_applies_between_two_loads_under_way_together() -> None:
    bench = Bench(cooldown_steps=50)
    first, second = decision("a"), decision("b")
    for decided in (first, second):
        bench.executor.take(decided, 10)
    for decided in (first, second):
        bench.executor.take(compiled(decided, bench.layer.spec), 11)
    assert bench.executor.run(11)
    assert [o.status for o in bench.outcomes] == [OutcomeStatus.EXECUTED, OutcomeStatus.REFUSED]
    assert bench.outcomes[1].reason.startswith("cooldown: ")


def test_cooldown_applies_between_two_decisions_of_one_step() -> None:
    bench = Bench(cooldown_steps=50)
    for name in ("a", "b"):
        bench.executor.take(decision(name, type="optimize_parameters"), 10)
    assert bench.executor.run(10)
    assert [o.status for o in bench.outcomes] == [OutcomeStatus.EXECUTED, OutcomeStatus.REFUSED]


def test_a_kernel_that_was_not_compiled_is_refused_with_the_stages_reason() -> None:
    bench = Bench()
    decided = decision()
    bench.executor.take(decided, 10)
    refused = compiled(decided, bench.layer.spec, status=KernelStatus.REFUSED, reason="over the budget", checksum="")
    bench.executor.take(refused, 10)
    bench.executor.run(10)
    assert (bench.outcomes[0].status, bench.outcomes[0].reason) == (
        OutcomeStatus.REFUSED,
        "not_compiled: over the budget",
    )


def test_a_corrupt_kernel_fails_and_training_continues() -> None:
    bench = Bench()
    decided = decision()
    bench.executor.take(decided, 10)
    bench.executor.take(compiled(decided, bench.layer.spec, checksum="0" * 64), 10)
    assert not bench.executor.run(10)
    assert bench.outcomes[0].status is OutcomeStatus.FAILED
    assert bench.outcomes[0].reason.startswith("KernelCorrupt: ")
    assert not bench.layer.kernels
    bench.model(torch.randn(2, 5)).sum().backward()
    bench.optimizer.step()


def test_a_kernel_for_something_else_is_refused() -> None:
    bench = Bench()
    decided = decision()
    bench.executor.take(decided, 10)
    bench.executor.take(compiled(decided, bench.layer.spec, layer_id="1"), 10)
    bench.executor.run(10)
    assert bench.outcomes[0].reason.startswith("wrong_kernel: ")


def test_unload_and_fossilize_name_the_kernel() -> None:
    bench = Bench()
    bench.decide("a", step=1)
    bench.layer.advance(5)
    fossilized = bench.decide("b", type="fossilize_kernel", step=6)
    assert fossilized is not None
    assert (fossilized.status, fossilized.kernel_id) == (OutcomeStatus.EXECUTED, decision("a").kernel_id)
    bench.decide("c", step=7)
    bench.layer.advance(12)
    unloaded = bench.decide("d", type="unload_kernel", step=13)
    assert unloaded is not None
    assert (unloaded.status, unloaded.kernel_id) == (OutcomeStatus.EXECUTED, decision("c").kernel_id)
    assert [dropped.kernel_id for dropped in bench.layer.advance(20)] == [decision("c").kernel_id]


def test_optimize_parameters_halves_a_layers_rate_down_to_the_floor() -> None:
    bench = Bench()
    weight = next(bench.layer.base.parameters())
    for index, rate in enumerate((0.005, 0.0025, 0.00125, 0.000625)):
        outcome = bench.decide(f"d{index}", type="optimize_parameters")
        assert outcome is not None
        assert outcome.status is OutcomeStatus.EXECUTED
        assert bench.growing.learning_rate(weight) == pytest.approx(rate)
    assert bench.executor.scale("0") == 1 / 16
    outcome = bench.decide("last", type="optimize_parameters")
    assert outcome is not None
    assert outcome.reason.startswith("learning_rate_floor: ")


def test_a_kernel_learns_at_the_rate_of_its_layer() -> None:
    bench = Bench()
    bench.decide("a", type="optimize_parameters")
    bench.decide("b")
    parameter = next(bench.layer.kernels.parameters())
    assert bench.growing.learning_rate(parameter) == pytest.approx(0.005)


def test_hit_rates_are_those_of_the_layers_lookups() -> None:
    bench = Bench()
    assert bench.executor.hit_rate("0") == 1.0
    bench.decide("a")
    assert bench.executor.hit_rate("0") == 0.0
    decided = decision("b")
    ready = compiled(decided, bench.layer.spec)
    bench.cache.prefetch(ready.kernel_id, ready.checksum)
    bench.executor.take(decided, 20)
    bench.executor.take(ready, 20)
    bench.executor.run(20)
    assert bench.executor.hit_rate("0") == 0.5


def test_without_a_held_out_batch_only_the_loss_is_missing() -> None:
    outcome = Bench(held_out=False).decide()
    assert outcome is not None
    assert set(outcome.before) == set(outcome.after) == {"latency_ms", "parameters", "kernel_parameters"}


def test_the_end_refuses_open_and_further_decisions() -> None:
    bench = Bench()
    bench.executor.take(decision("open", step=100), 110)
    bench.executor.end(120)
    bench.executor.take(decision("late", step=119), 120)
    bench.executor.take(decision("idle", type="no_op", layer=None, step=120), 120)
    assert [(o.status, o.reason.split(":")[0], o.step) for o in bench.outcomes] == [
        (OutcomeStatus.REFUSED, "run_ended", 120)
    ] * 2
    assert bench.executor.latest_decision_step == 120
    assert bench.executor.open == 0
