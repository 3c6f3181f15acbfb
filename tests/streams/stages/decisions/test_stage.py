import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tamiyo.models.behaviour import recompute
from tamiyo.schemas.adaptation import AdaptationDecision, OutcomeStatus
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import encode
from tamiyo.schemas.identity import decision_id, kernel_id, sampling_seed
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES
from tests.streams.stages.decisions.bench import Bench, command, first_adaptation, graph, outcome
from tests.support.released import make_policy, release


def test_every_graph_gets_one_decision(bench: Bench) -> None:
    graphs = [graph(index) for index in range(10)]
    decisions = bench.decide(*graphs, graphs[3])
    assert [each.graph_id for each in decisions] == [each.graph_id for each in graphs]
    assert [each.decision_id for each in decisions] == [decision_id(each.graph_id) for each in graphs]
    assert all(each.seed == sampling_seed(each.decision_id) for each in decisions)
    assert all(each.policy_version == 0 for each in decisions)
    assert all(each.explanation.startswith(f"Step {each.step}: ") for each in decisions)


def test_a_repeated_graph_is_not_decided_again(bench: Bench) -> None:
    stage = bench.make()
    first, repeated = bench.log.add(GRAPHS, graph(0)), bench.log.add(GRAPHS, graph(0))
    assert len(stage.feed([first])) == 1
    assert stage.feed([repeated]) == []


def test_a_decision_has_everything_needed_to_recompute_it(bench: Bench) -> None:
    decision = bench.adapted()[0]
    probabilities = decision.probabilities.numpy()
    mask = np.frombuffer(decision.mask, np.uint8).astype(bool)
    assert len(mask) == 1 + len(decision.layers) * len(decision.kinds)
    assert probabilities.sum() == pytest.approx(1)
    assert (probabilities[~mask] == 0).all()
    assert (probabilities[mask] > 0).all()
    assert decision.log_probability == pytest.approx(math.log(probabilities[decision.action_index]))
    assert decision.confidence == pytest.approx(1 - decision.uncertainty)
    assert decision.proposed.type == decision.type == "load_kernel"
    assert decision.kernel_id == kernel_id(decision.decision_id)
    assert decision.vetoes == []
    assert f": load {decision.blueprint} at layer {decision.layer_id} (" in decision.explanation


@pytest.mark.parametrize("learned", [False, True])
def test_propensities_are_recomputed_from_graph_and_version(bench: Bench, learned: bool) -> None:
    policy = make_policy(3, learned=learned)
    bench.checkpoints.records["tamiyo"] = release(bench.url, 3, policy)
    graphs = [graph(index, run_id=f"run-{index}") for index in range(8)]
    decisions = bench.decide(*graphs)
    for each, decided in zip(graphs, decisions, strict=True):
        assert decided.policy_version == 3
        again = recompute(policy, each, decided)
        assert np.abs(again - decided.probabilities.numpy()).max() <= 1e-5


def test_the_same_log_gives_the_same_bytes_in_any_batches(tmp_path: Path) -> None:
    graphs = [graph(index, run_id=f"run-{index % 3}") for index in range(12)]
    logs = []
    for batch in (1, 5, 12):
        bench = Bench(tmp_path)
        for each in graphs:
            bench.log.add(GRAPHS, each)
        bench.harness.run(batch=batch)
        logs.append([encode(each) for each in bench.harness.records(DECISIONS)])
    assert logs[0] == logs[1] == logs[2]


# What forbids any adaptation


@pytest.mark.parametrize(
    ("fields", "by"),
    [
        ({"signals": 2}, "signals"),
        ({"final": True}, "run"),
        ({"steps_since_adaptation": 50, "cooldown_steps": 200}, "cooldown"),
    ],
)
def test_a_graph_may_forbid_adaptations(bench: Bench, fields: dict[str, Any], by: str) -> None:
    for decision in bench.decide(*(graph(5, run_id=f"run-{n}", **fields) for n in range(10))):
        assert decision.type == decision.proposed.type == "no_op"
        assert [veto.by for veto in decision.vetoes] == [by]
        assert decision.log_probability == 0
        assert sum(decision.mask) == 1
        assert decision.explanation == f"Step 290: no adaptation allowed; {decision.vetoes[0].reason} ({by})."


@pytest.mark.parametrize("key", ["run-1", "*"])
def test_a_paused_run_is_not_adapted(bench: Bench, key: str) -> None:
    bench.control.records[key] = command(key, paused=True, reason="audit")
    (decision,) = bench.decide(graph(5))
    assert decision.type == "no_op"
    assert decision.vetoes[0].by == "control"
    assert decision.explanation == "Step 290: no adaptation allowed; the run is paused: audit (control)."


def test_a_dry_run_is_decided_and_not_executed(bench: Bench) -> None:
    bench.control.records["*"] = command("*", dry_run=True)
    decision = bench.adapted()[0]
    assert decision.dry_run
    assert decision.kernel_id is None
    assert decision.explanation.endswith(" Not executed: dry run.")


def test_protected_layers_are_never_chosen(bench: Bench) -> None:
    bench.control.records["*"] = command("*", protected_layers=["layer.0"])
    found = bench.adapted(24)
    assert found
    assert {each.layer_id for each in found} <= {"layer.1", "layer.2"}


def test_an_installation_protects_layers_of_every_run(make_bench: Callable[..., Bench]) -> None:
    found = make_bench(protected_layers=("layer.0", "layer.1")).adapted(24)
    assert {each.layer_id for each in found} <= {"layer.2"}


def test_only_every_nth_window_may_bring_an_adaptation(make_bench: Callable[..., Bench]) -> None:
    decisions = make_bench(decision_interval=3).decide(*(graph(index) for index in range(9)))
    # An adaptation in flight is another reason, so only the interval's vetoes are checked.
    skipped = ["interval" in [veto.by for veto in each.vetoes] for each in decisions]
    assert skipped == [False, True, True] * 3


def test_too_much_uncertainty_is_a_veto(make_bench: Callable[..., Bench]) -> None:
    decisions = make_bench(max_decision_uncertainty=0.0).decide(*(graph(5, run_id=f"run-{n}") for n in range(8)))
    vetoed = [each for each in decisions if each.proposed.type != "no_op"]
    assert vetoed
    for each in vetoed:
        assert each.type == "no_op"
        assert each.layer_id is None
        assert each.kernel_id is None
        assert each.action_index > 0
        assert [veto.by for veto in each.vetoes] == ["uncertainty"]
        assert each.explanation.endswith(f" Not executed: {each.vetoes[0].reason} (uncertainty).")


# Adaptations in flight


def last(bench: Bench, *graphs: ModelGraph) -> AdaptationDecision:
    return bench.decide(*graphs)[-1]


def test_a_second_adaptation_waits_for_the_first(bench: Bench) -> None:
    run_id, at = first_adaptation(bench)
    for ahead in range(1, 6):
        decision = last(bench, graph(at + ahead, run_id=run_id))
        assert [veto.by for veto in decision.vetoes] == ["in_flight"]
    assert last(bench, graph(at + 6, run_id=run_id)).vetoes == []  # its outcome is overdue


def test_a_graph_after_the_first_was_executed_ends_the_wait(bench: Bench) -> None:
    run_id, at = first_adaptation(bench)
    before = last(bench, graph(at + 1, run_id=run_id, steps_since_adaptation=51))
    assert [veto.by for veto in before.vetoes] == ["in_flight"]  # that was an earlier one
    assert last(bench, graph(at + 2, run_id=run_id, steps_since_adaptation=60)).vetoes == []


def test_the_cooldown_counts_from_the_decision_too(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(cooldown_steps=500, in_flight_steps=0)
    run_id, at = first_adaptation(bench)
    assert [veto.by for veto in last(bench, graph(at + 9, run_id=run_id)).vetoes] == ["cooldown"]
    assert last(bench, graph(at + 10, run_id=run_id)).vetoes == []


def test_an_adaptation_is_remembered_for_the_runs_own_cooldown(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(rate_steps=1, in_flight_steps=0)
    run_id, at = first_adaptation(bench, cooldown_steps=500)
    for ahead in range(1, 10):
        decision = last(bench, graph(at + ahead, run_id=run_id, cooldown_steps=500))
        assert [veto.by for veto in decision.vetoes] == ["cooldown"]


def test_the_rate_budget_is_counted_over_its_steps(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_adaptations=1, rate_steps=400, in_flight_steps=0)
    run_id, at = first_adaptation(bench)
    assert [veto.by for veto in last(bench, graph(at + 7, run_id=run_id)).vetoes] == ["rate"]
    assert last(bench, graph(at + 8, run_id=run_id)).vetoes == []


@pytest.mark.parametrize("status", [OutcomeStatus.REFUSED, OutcomeStatus.FAILED])
@pytest.mark.parametrize("used", [False, True])
def test_a_refusal_ends_the_wait_if_outcomes_are_used(
    make_bench: Callable[..., Bench], status: OutcomeStatus, used: bool
) -> None:
    bench = make_bench(heed_outcomes=used)
    run_id, at = first_adaptation(bench)
    name = bench.harness.records(DECISIONS)[-1].decision_id
    bench.log.add(OUTCOMES, outcome(name, run_id, status))
    decision = last(bench, graph(at + 1, run_id=run_id))
    assert [veto.by for veto in decision.vetoes] == ([] if used else ["in_flight"])


# Policies


def test_graphs_wait_for_the_first_policy(bench: Bench) -> None:
    released = bench.checkpoints.records.pop("tamiyo")
    assert bench.decide(graph(0), graph(1), graph(1)) == []
    assert bench.harness.committed == {GRAPHS.name: 0}
    assert bench.harness.stage.tick(1000) == []
    bench.checkpoints.records["tamiyo"] = released
    bench.harness.take(bench.harness.stage.tick(2000))
    assert [each.step for each in bench.harness.records(DECISIONS)] == [40, 90]


def test_waiting_graphs_are_bounded(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_waiting=2)
    bench.checkpoints.records.clear()
    bench.decide(graph(0), graph(1), graph(2))
    assert [each.source.record.step for each in bench.harness.rejected] == [40]


def test_a_new_policy_is_picked_up_and_a_bad_one_is_not(bench: Bench) -> None:
    assert bench.decide(graph(0))[-1].policy_version == 0
    bench.checkpoints.records["tamiyo"] = release(bench.url, 1)
    assert bench.decide(graph(1))[-1].policy_version == 1


def test_a_policy_with_infinite_weights_is_replaced(bench: Bench) -> None:
    stage = bench.make()
    bench.log.add(GRAPHS, graph(0))
    bench.log.add(GRAPHS, graph(1))
    assert len(stage.feed(bench.log.messages[:1])) == 1
    bench.checkpoints.records["tamiyo"] = release(bench.url, 1)
    served = stage._policies.current()
    assert served is not None
    with torch.no_grad():
        for parameter in served.policy.parameters():
            parameter.fill_(math.inf)
    (output,) = stage.feed(bench.log.messages[1:])
    assert getattr(output, "record", None) is not None
    assert output.record.policy_version == 0


def test_a_graph_of_another_feature_catalogue_is_rejected(bench: Bench) -> None:
    bench.decide(graph(0, feature_version=99), graph(1))
    assert [each.step for each in bench.harness.records(DECISIONS)] == [90]
    assert "got catalogue 99" in bench.harness.rejected[0].reason


def test_a_decision_that_was_too_large_is_no_longer_in_flight_and_may_be_made_again(bench: Bench) -> None:
    run_id, index = first_adaptation(bench)
    stage = bench.harness.stage
    decision = next(each for each in bench.harness.published if each.record.run_id == run_id)
    source = bench.log.messages[-1]
    assert stage.feed([source]) == []  # a repeat
    stage.forget(decision)
    (again,) = stage.feed([source])
    assert again.record == decision.record  # not vetoed by itself
    assert index == 5
