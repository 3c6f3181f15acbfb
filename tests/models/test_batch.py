import math

import numpy as np
import pytest
import torch

from tamiyo.models.actions import kinds
from tamiyo.models.batch import GraphBatch, graph_entropy, masked_log_softmax
from tamiyo.models.features import EDGE_FEATURES, FEATURE_VERSION
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.schemas.errors import PolicyError
from tests.support.factories import make_graph

KINDS = kinds(["parallel_expansion", "low_rank"])


def batch_of(*graphs):
    return GraphBatch.of(graphs, KINDS, [legal_actions(graph, KINDS, limits=MaskLimits()) for graph in graphs])


def test_two_graphs_side_by_side():
    batch = batch_of(make_graph(layers=2), make_graph(layers=3))
    assert batch.graphs == 2
    assert batch.x.shape[0] == 5
    assert batch.node_graph.tolist() == [0, 0, 1, 1, 1]
    assert batch.offsets.tolist() == [0, 11, 27]
    assert batch.action_graph.tolist() == [0] * 11 + [1] * 16
    # no_op of graph 1 is row 1, its first layer's kinds follow the two no_ops and the other graph's ten.
    assert batch.action_row.tolist() == [0, *range(2, 12), 1, *range(12, 27)]
    assert batch.edge_index.tolist() == [[0, 1, 2, 3, 3, 4], [1, 0, 3, 4, 2, 3]]
    assert batch.edge_attr[:, -1].tolist() == [0, 1, 0, 0, 1, 1]
    assert EDGE_FEATURES[-1].name == "reversed"


def test_a_graph_without_edges():
    batch = batch_of(make_graph(layers=1))
    assert batch.edge_index.shape == (2, 0)
    assert batch.edge_attr.shape == (0, 8)


def test_what_does_not_fit_is_refused():
    graph = make_graph(layers=2)
    with pytest.raises(PolicyError, match="got shape"):
        GraphBatch.of([graph], KINDS, [np.ones(7, dtype=np.bool_)])
    with pytest.raises(PolicyError, match="with no_op legal"):
        GraphBatch.of([graph], KINDS, [np.zeros(11, dtype=np.bool_)])
    with pytest.raises(PolicyError, match="a mask for each"):
        GraphBatch.of([graph], KINDS, [])
    with pytest.raises(PolicyError, match="expected graphs and a mask"):
        GraphBatch.of([], KINDS, [])
    with pytest.raises(PolicyError, match="feature version"):
        batch_of(graph.model_copy(update={"feature_version": FEATURE_VERSION + 1}))


def test_masked_log_softmax_by_hand():
    logits = torch.tensor([0.0, math.log(3.0), 7.0, 1e6, -1e6], requires_grad=True)
    mask = torch.tensor([True, True, False, True, True])
    found = masked_log_softmax(logits, mask, torch.tensor([0, 0, 0, 1, 1]))
    torch.testing.assert_close(found[:2], torch.tensor([0.25, 0.75]).log())
    assert found[2] == -math.inf
    assert found[3] == 0.0
    found[0].backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.75, -0.75, 0.0, 0.0, 0.0]))


def test_it_agrees_with_torch_on_each_graph():
    torch.manual_seed(0)
    logits, mask = torch.randn(12), torch.rand(12) > 0.4
    mask[[0, 7]] = True
    graph = torch.tensor([0] * 7 + [1] * 5)
    found = masked_log_softmax(logits, mask, graph)
    for part in (graph == 0, graph == 1):
        expected = torch.log_softmax(logits[part].masked_fill(~mask[part], -torch.inf), dim=0)
        torch.testing.assert_close(found[part], expected)


def test_entropy_by_hand_and_its_gradient():
    logits = torch.tensor([0.0, 0.0, 5.0, 1.0], requires_grad=True)
    mask, graph = torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 1])
    entropy = graph_entropy(masked_log_softmax(logits, mask, graph), graph, 2)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2.0), 0.0]))
    entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()
