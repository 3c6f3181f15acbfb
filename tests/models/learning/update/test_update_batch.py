import numpy as np
import pytest
import torch

from tamiyo.models.batch import masked_log_softmax
from tamiyo.models.learning.example import stack
from tamiyo.models.learning.update_batch import CHUNK, UpdateBatch
from tests.models.learning.update.updates import COUNT, EXAMPLES
from tests.support.experiences import small_policy


@pytest.fixture
def policy():
    """A policy whose heads are no longer 0."""
    policy = small_policy().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return policy


@pytest.fixture
def batch(policy):
    assert COUNT > CHUNK  # so that there are two parts, the second a short one
    return UpdateBatch(policy.rewards, EXAMPLES)


@pytest.mark.parametrize("settled", [False, True])
def test_the_output_of_a_minibatch_is_the_policys(policy, batch, settled):
    inds = np.random.default_rng(0).permutation(COUNT)[:7].tolist()
    graph, action = stack([EXAMPLES[index] for index in inds])
    found = batch.output(policy, inds, graph, action, batch.act(policy) if settled else None)
    expected = policy(graph)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.value, expected.value, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.rewards, expected.ensemble[:, action], atol=1e-6, rtol=1e-5)


def test_the_rewards_at_any_action_are_those_of_the_whole_list(policy, batch):
    graph, _ = stack(EXAMPLES[:3])
    expected = policy(graph).ensemble
    prior = policy.rewards.prior(graph)[:, graph.action_row]
    sizes = graph.offsets.diff()
    for position in range(int(sizes.min())):  # no_op, and every kind at every node
        action = graph.offsets[:-1] + position
        found = policy.predict_at(graph, policy.act(graph), action, prior[:, action])
        torch.testing.assert_close(found.rewards, expected[:, action], atol=1e-6, rtol=1e-5)


def test_what_has_settled_has_no_gradient_and_what_predicts_has(policy, batch):
    graph, action = stack(EXAMPLES[:3])
    found = batch.output(policy, range(3), graph, action, batch.act(policy))
    assert not found.logits.requires_grad
    assert found.value.requires_grad
    assert found.rewards.requires_grad


@pytest.mark.parametrize("settled", [False, True])
def test_the_outputs_of_all_are_in_the_order_of_the_examples(policy, batch, settled):
    acted = batch.act(policy)
    parts = batch.outputs(policy, acted if settled else None)
    with torch.no_grad():
        expected = policy(batch.graph)
    for field in ("logits", "value", "node_embeddings", "global_embedding"):
        found = torch.cat([getattr(each, field) for each in parts])
        torch.testing.assert_close(found, getattr(expected, field), atol=1e-6, rtol=1e-5)
    ensemble = torch.cat([each.ensemble for each in parts], dim=1)
    torch.testing.assert_close(ensemble, expected.ensemble, atol=1e-6, rtol=1e-5)
    log_probabilities = masked_log_softmax(expected.logits, batch.graph.mask, batch.graph.action_graph)
    torch.testing.assert_close(batch.log_probabilities(acted), log_probabilities, atol=1e-6, rtol=1e-5)
