import os
import subprocess
import sys

import pytest
import torch

from tamiyo.models.batch import GraphBatch
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tests.support.experiences import make_example, small_policy
from tests.support.factories import BLUEPRINTS, make_graph

CONFIG = PolicyConfig(blueprints=BLUEPRINTS)


def batch_of(policy, *graphs):
    masks = [legal_actions(graph, policy.kinds, limits=MaskLimits()) for graph in graphs]
    return GraphBatch.of(graphs, policy.kinds, masks)


@pytest.fixture(scope="module")
def policy():
    return TamiyoPolicy(CONFIG).eval()


def test_shapes(policy):
    batch = batch_of(policy, make_graph(layers=2), make_graph(layers=3))
    output = policy(batch)
    actions = 2 + 5 * len(policy.kinds)
    assert output.logits.shape == (actions,)
    assert output.ensemble.shape == (5, actions)
    assert output.value.shape == (2,)
    assert output.node_embeddings.shape == (5, 128)
    assert output.global_embedding.shape == (2, 128)
    assert torch.equal(output.action_graph, batch.action_graph)
    assert len(policy.convolutions) == 4


def test_version_0_is_the_heuristic_and_expects_nothing(policy):
    batch = batch_of(policy, make_graph(5))
    output = policy(batch)
    assert torch.equal(output.logits, batch.prior)
    assert torch.equal(output.value, torch.zeros(1))
    torch.testing.assert_close(output.predicted_reward, torch.zeros_like(output.predicted_reward), atol=1e-6, rtol=0)


def test_a_process_leaves_no_file_behind(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from tamiyo.models.policy import PolicyConfig, TamiyoPolicy\n"
        "TamiyoPolicy(PolicyConfig(blueprints=('low_rank',), hidden=8, layers=2))\n"
        "assert any(name.endswith('GINEConv_propagate') for name in sys.modules)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", program], check=True, env={**environment, "TMPDIR": str(tmp_path)})
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_an_untrained_ensemble_is_equally_unsure_of_everything(policy):
    spread = policy(batch_of(policy, make_graph(5), make_graph(2, layers=7))).spread
    torch.testing.assert_close(spread, torch.full_like(spread, 0.25))


def test_the_same_config_gives_the_same_weights_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = TamiyoPolicy(CONFIG)
    assert torch.equal(torch.rand(1), expected)
    two, other = TamiyoPolicy(CONFIG), TamiyoPolicy(CONFIG.model_copy(update={"seed": 1}))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert not torch.equal(one.encoder.weight, other.encoder.weight)


def test_every_parameter_learns_and_no_prior_does():
    policy = TamiyoPolicy(CONFIG.model_copy(update={"layers": 2, "hidden": 16, "dropout": 0.0}))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith(("3.weight", "_last")):
                parameter.normal_()
    output = policy(batch_of(policy, make_graph(5), make_graph(3, layers=4)))
    (output.logits.square().sum() + output.value.square().sum() + output.ensemble.square().sum()).backward()
    # A shift of all gates alike does not change an attention's weights.
    still = {n for n, p in policy.named_parameters() if p.grad is None or not p.grad.any()}
    assert still <= {"pooling.gate_nn.2.bias"}
    assert not any("prior" in name for name, _ in policy.named_parameters())


def test_the_order_of_nodes_does_not_matter():
    """Message passing sees the graph, not the list: a chain read backwards is the same chain."""
    policy = TamiyoPolicy(CONFIG).eval()
    with torch.no_grad():
        policy.node_actions[3].weight.normal_()
    batch = batch_of(policy, make_graph(5, growth_score=[0.1, 0.2, 0.3], health=[0.9, 0.8, 0.7]))
    order = torch.tensor([2, 0, 1])
    place = torch.argsort(order)
    moved = GraphBatch(
        **{name: getattr(batch, name) for name in GraphBatch.__slots__}
        | {"x": batch.x[order], "edge_index": place[batch.edge_index]}
    )
    scores = (policy(batch).logits - batch.prior)[1:].reshape(3, -1)
    again = (policy(moved).logits - batch.prior)[1:].reshape(3, -1)
    torch.testing.assert_close(again, scores[order], atol=1e-4, rtol=1e-4)


def test_messages_are_those_of_gine_and_scores_those_of_the_head():
    """The policy computes both in another order than torch_geometric and `nn.Sequential` do, and learns alike."""
    policy = TamiyoPolicy(CONFIG.model_copy(update={"dropout": 0.0}))
    batch = batch_of(policy, make_graph(5, layers=4), make_graph(3, layers=2))
    layer, head = policy.convolutions[0], policy.node_actions
    with torch.no_grad():
        head[3].weight.normal_()
    x, whole = torch.randn(6, 128), torch.randn(2, 128)

    def gradients(value, module):
        module.zero_grad()
        value.square().sum().backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    update = torch.relu(layer.norm(layer.convolution(x, batch.edge_index, batch.edge_attr)))
    found = layer(x, batch.edge_index, batch.edge_attr)
    torch.testing.assert_close(found, x + update, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(found, layer), gradients(x + update, layer), atol=1e-3, rtol=1e-4)
    scores = head(torch.cat([x, whole[batch.node_graph]], dim=1))
    found = policy._at_nodes(x, whole, batch)
    torch.testing.assert_close(found, scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(found, head), gradients(scores, head), atol=1e-2, rtol=1e-4)


def test_heads_agree_where_they_were_trained_and_not_elsewhere():
    policy = TamiyoPolicy(CONFIG).eval()  # without the dropout's noise, so that they can agree
    seen = batch_of(policy, make_graph(5))
    optimizer = torch.optim.Adam(policy.rewards.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        (policy(seen).ensemble[:, 1] - 0.5).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        output = policy(seen)
    assert output.spread[1] < 0.05
    assert float(output.predicted_reward[1]) == pytest.approx(0.5, abs=0.1)
    by_kind = output.spread[1:].reshape(3, -1)
    # The same kind at similar layers: nearly as low, compared with 0.25 for kinds that were never tried.
    assert by_kind[:, 0].max() < by_kind[:, 1:].min() / 3
    torch.testing.assert_close(by_kind[:, 1:], torch.full_like(by_kind[:, 1:], 0.25))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_heuristic_counts_with_its_weight(weight):
    policy = small_policy(heuristic_weight=weight)
    graph = make_example().graph
    assert torch.equal(policy(graph).logits, weight * graph.prior)  # an untrained head adds nothing
