"""What a learner starts from."""

from pathlib import Path

import pytest
import torch

from tamiyo.host.blueprints import names
from tamiyo.models.builtin import BUILTIN, initial_policy
from tamiyo.models.checkpoint import CheckpointHeader, load, save
from tamiyo.schemas.errors import PolicyError
from tests.support.experiences import BLUEPRINTS, make_example, small_policy


def test_the_package_comes_with_a_trained_policy():
    policy = initial_policy("builtin", tuple(names()))
    assert not policy.training
    assert policy.config.heuristic_weight == 0.0
    assert policy.config.blueprints == tuple(names())
    assert policy.node_actions[-1].weight.abs().max() > 0
    assert policy.calibration.scores  # calibrated on runs that it was not fitted to
    assert BUILTIN.stat().st_size < 5e6


def test_the_model_card_describes_this_file():
    _, header, _ = load(BUILTIN.read_bytes())
    runs, graphs, actions = (round(header.metrics[f"charts/{name}"]) for name in ("runs", "graphs", "actions"))
    card = (Path(__file__).parents[2] / "docs" / "model-card.md").read_text()
    assert f"{runs} runs, {graphs:,} graphs, {actions:,} actions" in card
    assert f"eight reward heads; `heuristic_weight` {header.config.heuristic_weight:g}" in card
    assert (header.config.layers, header.config.hidden, header.config.heads) == (3, 64, 8)


def test_without_one_it_is_the_heuristic():
    policy = initial_policy("heuristic", BLUEPRINTS, seed=3)
    graph = make_example().graph
    assert torch.equal(policy(graph).logits, graph.prior)
    assert policy.config.seed == 3


def test_a_checkpoint_of_ones_own(tmp_path):
    mine = small_policy()
    path = tmp_path / "mine.safetensors"
    path.write_bytes(save(mine, None, CheckpointHeader.of(mine, version=7)))
    for source in (str(path), path.as_uri()):
        assert initial_policy(source, BLUEPRINTS).config == mine.config


@pytest.mark.parametrize("content", [None, b"", b"not a policy", b"\xff" * 100])
def test_a_file_that_is_no_policy_is_refused(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyError):
        initial_policy(str(path), BLUEPRINTS)


def test_other_blueprints_keep_what_is_known_and_leave_the_rest_to_the_heuristic():
    known = tuple(names())
    policy = initial_policy("builtin", (*known, "of_my_own"))
    first, trained = policy.node_actions[-1].weight, initial_policy("builtin", known).node_actions[-1].weight
    assert torch.equal(first[: len(known)], trained[: len(known)])
    assert torch.equal(first[len(known) + 1 :], trained[len(known) :])
