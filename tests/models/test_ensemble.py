import math

import numpy as np
import pytest
import torch
from torch import nn

from tamiyo.models.batch import GraphBatch
from tamiyo.models.ensemble import PRIOR_WIDTH, WIDTH, RewardEnsemble
from tamiyo.models.learning.example import stack
from tests.support.experiences import HEADS, KINDS, graph_of, make_example, small_policy

HIDDEN = 8


def batch_of(*layers):
    return stack([make_example(index, layers=count) for index, count in enumerate(layers)])[0]


def ensemble(heads=4, prior_scale=0.25, seed=0):
    torch.manual_seed(seed)
    batch = batch_of(2)
    inputs = (batch.x.shape[1], batch.globals.shape[1])
    return RewardEnsemble(heads=heads, hidden=HIDDEN, inputs=inputs, kinds=len(KINDS), prior_scale=prior_scale)


def embeddings(batch):
    return torch.randn(batch.x.shape[0], HIDDEN), torch.randn(batch.graphs, HIDDEN)


def test_every_head_predicts_every_action():
    batch = batch_of(2, 3)
    assert ensemble()(*embeddings(batch), batch).shape == (4, 2 + 5 * len(KINDS))


def test_untrained_it_predicts_nothing_and_is_equally_unsure_of_everything():
    batch = batch_of(2, 3)
    found = ensemble(prior_scale=0.25)(*embeddings(batch), batch).detach()
    assert found.mean(dim=0).numpy() == pytest.approx(0.0, abs=1e-6)
    assert found.std(dim=0, correction=0).numpy() == pytest.approx(0.25, abs=1e-5)


def test_it_is_each_heads_own_network_and_prior():
    # Head by head, in plain matrix products.
    batch = batch_of(2, 3)
    found = ensemble()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(0, 0.3)
    nodes, whole = embeddings(batch)
    placed = torch.cat([nodes, whole[batch.node_graph]], dim=1)
    predictions = found(nodes, whole, batch).detach()
    prior = found.prior(batch)
    for head in range(4):
        node = torch.relu(placed @ found.node_first[head] + found.node_first_bias[head, 0])
        node = node @ found.node_last[head] + found.node_last_bias[head, 0]
        no_op = torch.relu(whole @ found.no_op_first[head] + found.no_op_first_bias[head, 0])
        no_op = no_op @ found.no_op_last[head] + found.no_op_last_bias[head, 0]
        learned = torch.cat([no_op.flatten(), node.flatten()])
        torch.testing.assert_close(predictions[head], (learned + prior[head]).detach(), atol=1e-5, rtol=1e-5)


def test_the_prior_by_hand():
    batch = batch_of(2)
    found = ensemble(heads=3, prior_scale=0.5)
    whole = batch.globals[0].numpy()
    second = np.concatenate([batch.x[1].numpy(), whole])
    names = ("prior_no_op_first", "prior_no_op_last", "prior_node_first", "prior_node_last")
    raw = []
    for head in range(3):
        no_op_first, no_op_last, node_first, node_last = (getattr(found, name)[head].numpy() for name in names)
        raw.append([(np.tanh(whole @ no_op_first) @ no_op_last)[0], (np.tanh(second @ node_first) @ node_last)[0]])
    expected = 0.5 * (raw - np.mean(raw, axis=0)) / np.std(raw, axis=0)
    at = [0, 1 + len(KINDS)]  # no_op, and the first kind at the second node
    assert found.prior(batch)[:, at].numpy() == pytest.approx(expected, abs=1e-4)


def test_the_prior_is_fixed_and_has_no_gradient():
    found = ensemble()
    assert {name for name, _ in found.named_buffers()} == {
        "prior_node_first", "prior_node_last", "prior_no_op_first", "prior_no_op_last",
    }  # fmt: skip
    assert not any("prior" in name for name, _ in found.named_parameters())
    assert not found.prior(batch_of(2)).requires_grad
    assert found.prior_node_first.shape[-1] == PRIOR_WIDTH
    assert found.node_first.shape == (4, 2 * HIDDEN, WIDTH)


def test_heads_start_as_linear_layers_do_each_with_its_own_draw():
    found = ensemble()
    bound = 1 / math.sqrt(2 * HIDDEN)
    first = found.node_first.detach()
    assert float(first.abs().max()) <= bound
    assert float(first.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not torch.equal(first[0], first[1])


def test_the_same_seed_has_the_same_priors():
    one, other, third = small_policy(seed=1), small_policy(seed=1), small_policy(seed=2)
    assert torch.equal(one.rewards.prior_node_first, other.rewards.prior_node_first)
    assert not torch.equal(one.rewards.prior_node_first, third.rewards.prior_node_first)


def test_heads_come_to_agree_where_they_saw_rewards_and_nowhere_else():
    policy = small_policy(hidden=16)
    seen, unseen = make_example(0, action=1), make_example(1, action=4)
    batch, _ = stack([seen])
    optimizer = torch.optim.Adam(policy.rewards.parameters(), lr=3e-3)
    for _ in range(150):
        loss = nn.functional.mse_loss(policy(batch).ensemble[:, seen.action], torch.full((HEADS,), 0.4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        output = policy(batch)
    assert float(output.predicted_reward[seen.action]) == pytest.approx(0.4, abs=0.02)
    assert float(output.spread[seen.action]) < 0.02
    assert float(output.spread[unseen.action]) > 0.15


def test_features_that_no_prior_distinguishes_do_not_divide_by_nothing():
    graph = graph_of(2)
    batch = GraphBatch.of([graph], KINDS, [make_example(0).graph.mask.numpy()])
    batch.x.zero_()
    batch.globals.zero_()
    found = ensemble().prior(batch)
    assert torch.isfinite(found).all()
    assert not found.any()
