"""Baselines choose legal actions, and do what their names say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tamiyo.evaluation.lab.baselines import (
    BASELINES,
    AtOnce,
    Cheapest,
    GreedyCounterfactual,
    Heuristic,
    Learned,
    Random,
    _Rule,
    baseline,
    certain,
    sampled,
)
from tamiyo.evaluation.lab.run import Run
from tamiyo.models.actions import to_action
from tamiyo.models.batch import GraphBatch
from tamiyo.models.checkpoint import CheckpointHeader, save
from tamiyo.models.features import NODE_FEATURES, global_value, node_column
from tamiyo.models.inference import evaluate
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.record import Tensor
from tests.evaluation.lab.support import SPEC, executed, finished

Seen = tuple[ModelGraph, npt.NDArray[np.bool_]]


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    """Return the graphs of a run that loads and unloads, with their masks."""

    def walk() -> Iterator[Seen]:
        with Run(SPEC, baseline("pump")) as run:
            while (graph := run.advance()) is not None:
                yield graph, run.pipeline.mask(graph)
                run.decide()

    return list(walk())


@pytest.mark.parametrize("name", BASELINES)
def test_choices_are_legal_and_their_probabilities_sum_to_one(name: str, seen: list[Seen]) -> None:
    policy = baseline(name)
    for graph, mask in seen:
        for seed in range(20):
            choice = policy.choose(graph, mask, seed=seed)
            assert mask[choice.index]
            assert choice.probabilities.shape == mask.shape
            assert choice.probabilities.sum() == pytest.approx(1.0, abs=1e-5)
            assert (choice.probabilities[~mask] == 0).all()
            assert choice.log_probability == pytest.approx(np.log(choice.probabilities[choice.index]), abs=1e-6)
            assert choice.entropy >= 0


@pytest.mark.parametrize("name", BASELINES)
def test_a_choice_is_a_function_of_graph_and_seed(name: str, seen: list[Seen]) -> None:
    graph, mask = seen[0]
    one, other = baseline(name), baseline(name)
    for seed in (0, 1, 2**127):
        assert one.choose(graph, mask, seed=seed).index == other.choose(graph, mask, seed=seed).index


def test_random_traffic_adapts_at_its_rate(seen: list[Seen]) -> None:
    graph, mask = seen[0]
    for rate in (0.0, 0.3, 1.0):
        found = Random(rate).choose(graph, mask, seed=0).probabilities
        assert 1.0 - found[0] == pytest.approx(rate, abs=1e-6)
    drawn = [Random(0.3).choose(graph, mask, seed=seed).index != 0 for seed in range(2000)]
    assert np.mean(drawn) == pytest.approx(0.3, abs=0.04)


def test_random_traffic_reaches_every_kind_of_action(seen: list[Seen]) -> None:
    found = set()
    for graph, mask in seen:
        policy = Random(1.0)
        probabilities = policy.choose(graph, mask, seed=0).probabilities
        found |= {to_action(int(i), graph.layer_id, policy.kinds).type for i in np.flatnonzero(probabilities)}
    assert found >= {"load_kernel", "unload_kernel"}


def test_the_heuristic_is_that_of_an_untrained_policy(seen: list[Seen]) -> None:
    learned = baseline("learned")
    for graph, mask in seen:
        one = Heuristic().choose(graph, mask, seed=0).probabilities
        other = learned.choose(graph, mask, seed=0).probabilities
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_pump_pumps() -> None:
    spec = SPEC.__class__("digits", seed=3, steps=600)
    kinds = executed(finished("pump", spec)[0])
    assert kinds == ["load_kernel", "unload_kernel"] * 2


@pytest.mark.parametrize(("policy", "extreme"), [(Cheapest(), min), (AtOnce(), max)])
def test_cheapest_loads_the_smallest_kernel_and_at_once_the_largest(
    policy: _Rule, extreme: type[min], seen: list[Seen]
) -> None:
    graph, mask = seen[0]
    sizes = {
        index: next(
            offer.parameters
            for offer in graph.offers[graph.layer_id.index(action.layer_id or "")]
            if offer.name == action.blueprint
        )
        for index in map(int, np.flatnonzero(mask))
        if (action := to_action(index, graph.layer_id, policy.kinds)).type == DecisionType.LOAD_KERNEL
    }
    assert len(set(sizes.values())) > 1
    assert sizes[policy.choose(graph, mask, seed=0).index] == extreme(sizes.values())


@pytest.mark.parametrize(
    "name",
    sorted(set(BASELINES) - {"heuristic", "learned", "builtin", "builtin_without_edges"}),
)
def test_where_nothing_is_legal_they_do_nothing(name: str, seen: list[Seen]) -> None:
    graph, mask = seen[0]
    nothing = np.zeros_like(mask)
    nothing[0] = True
    choice = baseline(name).choose(graph, nothing, seed=0)
    assert (choice.index, choice.probabilities[0]) == (0, 1.0)


def test_sampling_follows_the_distribution() -> None:
    probabilities = np.array([0.5, 0.0, 0.2, 0.3], np.float32)
    drawn = np.bincount([sampled(probabilities, seed=seed).index for seed in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, probabilities, atol=0.03)
    assert drawn[1] == 0


def test_a_certain_choice_has_no_entropy() -> None:
    choice = certain(2, np.ones(4, np.bool_))
    assert (choice.index, choice.log_probability, choice.entropy) == (2, 0.0, 0.0)


def test_an_unknown_baseline_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigurationError, match="no baseline 'nothing'; choose from never, heuristic, random"):
        baseline("nothing")
    with pytest.raises(ConfigurationError, match="static:heuristic trains a network of its own and decides nothing"):
        baseline("static:heuristic")


def test_without_edges_the_network_sees_what_it_would_see_in_a_graph_that_has_none(seen: list[Seen]) -> None:
    whole, without = baseline("builtin"), baseline("builtin_without_edges")
    assert isinstance(whole, Learned)
    assert isinstance(without, Learned)
    differs = False
    for graph, mask in seen:
        batch = GraphBatch.of([graph], whole.kinds, [mask])
        cut = replace(batch, edge_index=batch.edge_index[:, :0], edge_attr=batch.edge_attr[:0])
        expected, found = evaluate(whole.policy, cut), evaluate(without.policy, batch)
        torch.testing.assert_close(found.logits, expected.logits)
        torch.testing.assert_close(found.ensemble, expected.ensemble)
        differs |= not torch.equal(found.logits, evaluate(whole.policy, batch).logits)
    assert differs, "the edges make no difference at these graphs"


def loads_of(name: str, steps: int = 800) -> list[int]:
    """Return the steps of the kernels that a run under a rule loads."""
    run, _ = finished(name, SPEC.__class__("digits", seed=3, steps=steps))
    return [each.step for each in run.adaptations if (each.type, each.status) == ("load_kernel", "executed")]


def test_periodic_growth_keeps_its_interval() -> None:
    steps = loads_of("periodic")
    assert len(steps) >= 2
    assert all(200 <= each <= 300 for each in np.diff([0, *steps]))


def test_greedy_growth_is_as_fast_as_the_limits_allow() -> None:
    assert loads_of("greedy_growth")[0] < loads_of("periodic")[0]


def test_plateau_waits_until_the_validation_loss_stops_falling(seen: list[Seen]) -> None:
    policy = baseline("plateau")
    for graph, mask in seen:
        choice = policy.choose(graph, mask, seed=0)
        falling = global_value(graph, "validation_loss_trend") <= -0.1
        if falling or graph.step < 200:
            assert choice.index == 0


def test_greedy_counterfactual_unloads_what_does_not_help(seen: list[Seen]) -> None:
    policy = GreedyCounterfactual()
    column = [feature.name for feature in NODE_FEATURES].index("contribution")
    checked = 0
    for graph, mask in seen:
        unloads = [
            i for i in map(int, np.flatnonzero(mask))
            if to_action(i, graph.layer_id, policy.kinds).type == DecisionType.UNLOAD_KERNEL
        ]  # fmt: skip
        if not unloads or not node_column(graph, "contribution_measured").any():
            continue
        for value, expected in ((-1.0, True), (1.0, False)):
            features = graph.node_features.numpy().copy()
            features[:, column] = value
            changed = graph.model_copy(update={"node_features": Tensor.of(features)})
            assert (policy.choose(changed, mask, seed=0).index in unloads) == expected
            checked += 1
    assert checked


def test_a_checkpoint_is_a_policy_and_anything_else_is_refused(tmp_path: Path) -> None:
    policy = baseline("learned").policy  # type: ignore[attr-defined]
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(policy, None, CheckpointHeader.of(policy, version=7)))
    assert baseline(f"learned:{path}").version == 7
    with pytest.raises(ConfigurationError, match="cannot be read"):
        baseline(f"learned:{tmp_path / 'nothing'}")
    (tmp_path / "other.safetensors").write_bytes(b"nonsense")  # policies are read once a process
    with pytest.raises(ConfigurationError, match="no policy for this program"):
        baseline(f"learned:{tmp_path / 'other.safetensors'}")
