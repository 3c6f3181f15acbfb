import pytest
import torch

from tamiyo.models.batch import GraphBatch
from tamiyo.models.features import EDGE_FEATURES, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.models.inference import evaluate, spread_of
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy

FIELDS = ("logits", "value", "ensemble", "node_embeddings", "global_embedding", "action_graph")


def policy_of(hidden=128, layers=4, blueprints=("parallel_expansion", "low_rank"), **fields):
    """A policy in which no weight is 0."""
    policy = TamiyoPolicy(PolicyConfig(blueprints=blueprints, hidden=hidden, layers=layers, **fields)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return policy


def batch_of(policy, nodes, edges, *, seed=0, scale=1.0):
    """A batch of one graph with random features, edges and logits of the heuristic."""
    torch.manual_seed(seed)
    actions = 1 + nodes * len(policy.kinds)
    return GraphBatch(
        x=scale * torch.randn(nodes, len(NODE_FEATURES)),
        edge_index=torch.randint(0, nodes, (2, edges)),
        edge_attr=scale * torch.randn(edges, len(EDGE_FEATURES)),
        globals=scale * torch.randn(1, len(GLOBAL_FEATURES)),
        node_graph=torch.zeros(nodes, dtype=torch.int64),
        prior=torch.randn(actions),
        mask=torch.ones(actions, dtype=torch.bool),
        action_graph=torch.zeros(actions, dtype=torch.int64),
        action_row=torch.arange(actions),
        offsets=torch.tensor([0, actions]),
    )


def assert_same_bits(policy, batch):
    found = evaluate(policy, batch)
    with torch.inference_mode():
        expected = policy(batch)
    for field in FIELDS:
        one, other = getattr(found, field), getattr(expected, field)
        assert one.shape == other.shape, field
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), field
    assert torch.equal(torch.from_numpy(spread_of(found.ensemble)).nan_to_num(7.0), expected.spread.nan_to_num(7.0))


@pytest.mark.parametrize(
    ("nodes", "edges"), [(1, 0), (1, 2), (2, 0), (3, 4), (7, 12), (16, 40), (50, 122), (201, 700), (2000, 5000)]
)
def test_it_is_the_modules_bit_by_bit(nodes, edges):
    policy = policy_of()
    for seed in range(3 if nodes > 500 else 10):
        assert_same_bits(policy, batch_of(policy, nodes, edges, seed=seed, scale=3.0))


@pytest.mark.parametrize("fields", [{"hidden": 7, "layers": 1}, {"hidden": 96, "heads": 2}, {"heuristic_weight": 0.3}])
def test_of_every_shape(fields):
    policy = policy_of(blueprints=("a", "b", "c", "d", "e"), **fields)
    for nodes in (1, 10, 50):
        assert_same_bits(policy, batch_of(policy, nodes, 3 * nodes))


def test_what_is_not_finite_is_so_in_both():
    policy = policy_of(hidden=16)
    batch = batch_of(policy, 5, 8)
    batch.x[2, 3] = torch.inf
    assert not evaluate(policy, batch).value.isfinite().all()
    assert_same_bits(policy, batch)


def test_it_reads_the_weights_of_now():
    policy = policy_of(hidden=16)
    batch = batch_of(policy, 5, 8)
    evaluate(policy, batch)
    policy.load_state_dict({name: 1.1 * value for name, value in policy.state_dict().items()})
    assert_same_bits(policy, batch)


def test_dropout_stays_off_and_the_mode_as_it_is():
    policy = policy_of(hidden=16, dropout=0.5)
    batch = batch_of(policy, 5, 8)
    expected = evaluate(policy, batch).logits
    policy.train()
    assert torch.equal(evaluate(policy, batch).logits, expected)
    assert policy.training


@pytest.mark.parametrize("rows", [2, 5, 32])
def test_the_spread_is_torchs_bit_by_bit(rows):
    torch.manual_seed(rows)
    for scale in (1e-30, 1e-3, 1.0, 1e20):
        values = scale * torch.randn(rows, 4001) + scale * torch.randn(1, 4001).exp()
        assert torch.equal(torch.from_numpy(spread_of(values)), values.std(dim=0, correction=0))
