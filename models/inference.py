"""The forward pass of one graph: the arithmetic of `TamiyoPolicy.forward` with dropout off, without its modules.

A graph of 50 layers is so small that calling modules takes longer than multiplying matrices. The same kernels run here,
on the same shapes, in the same order, so the results are those of the modules bit by bit; the modules remain the
definition of the network, and what learns.
"""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tamiyo.models.batch import GraphBatch
from tamiyo.models.ensemble import RewardEnsemble
from tamiyo.models.policy import PolicyOutput, TamiyoPolicy


@torch.inference_mode()
def evaluate(policy: TamiyoPolicy, batch: GraphBatch) -> PolicyOutput:
    """Score every action of one graph.

    Args:
        policy: The policy, in either mode.
        batch: One graph, whose mask was made for the policy's `kinds`.
    """
    nodes = linear(batch.x, policy.encoder.weight, policy.encoder.bias).relu_()
    source, target = batch.edge_index.unbind()
    layer: Any
    for layer in policy.convolutions:
        convolution, norm = layer.convolution, layer.norm
        messages = (nodes + convolution.lin.bias).index_select(0, source)
        messages.addmm_(batch.edge_attr, convolution.lin.weight.t()).relu_()
        update = _head(nodes.index_add(0, target, messages), convolution.nn)
        nodes = torch.layer_norm(update, norm.normalized_shape, norm.weight, norm.bias, norm.eps).relu_().add_(nodes)
    whole = _pool(nodes, batch, policy.pooling.gate_nn)
    whole = whole.add_(linear(batch.globals, policy.context.weight, policy.context.bias)).relu_()
    first, last = cast("nn.Linear", policy.node_actions[0]), cast("nn.Linear", policy.node_actions[-1])
    of_nodes, of_whole = first.weight.chunk(2, dim=1)
    at_nodes = linear(whole, of_whole, first.bias).index_select(0, batch.node_graph).addmm_(nodes, of_nodes.t())
    at_nodes = linear(at_nodes.relu_(), last.weight, last.bias)
    scores = torch.cat([_head(whole, policy.no_op).flatten(), at_nodes.flatten()])
    return PolicyOutput(
        logits=scores.add_(policy.config.heuristic_weight * batch.prior),
        value=_head(whole, policy.value).flatten(),
        ensemble=_rewards(policy.rewards, nodes, whole, batch),
        node_embeddings=nodes,
        global_embedding=whole,
        action_graph=batch.action_graph,
    )


def _head(x: Tensor, head: Any) -> Tensor:
    """Return what a head of two linear layers makes of `x`, with a ReLU between them and perhaps dropout."""
    first, *_, last = head
    return linear(linear(x, first.weight, first.bias).relu_(), last.weight, last.bias)


def _pool(nodes: Tensor, batch: GraphBatch, gate: Any) -> Tensor:
    """Return the sum of the nodes weighed by attention, [1, hidden]; as torch_geometric's AttentionalAggregation."""
    score = _head(nodes, gate)
    weight = score.sub_(score.amax(dim=0)).exp_()
    total = weight.new_zeros(1, 1).index_add_(0, batch.node_graph, weight)
    return nodes.new_zeros(1, nodes.shape[1]).index_add_(0, batch.node_graph, weight.div_(total.add_(1e-16)) * nodes)


def _rewards(heads: RewardEnsemble, nodes: Tensor, whole: Tensor, batch: GraphBatch) -> Tensor:
    of_nodes, of_whole = heads.node_first.chunk(2, dim=1)
    of_graph = (whole @ of_whole).add_(heads.node_first_bias)
    at_nodes = (nodes @ of_nodes).add_(of_graph).relu_() @ heads.node_last
    no_op = (whole @ heads.no_op_first).add_(heads.no_op_first_bias).relu_() @ heads.no_op_last
    learned = [no_op.add_(heads.no_op_last_bias).flatten(1), at_nodes.add_(heads.node_last_bias).flatten(1)]
    raw = torch.cat([batch.x, batch.globals.expand(len(batch.x), -1)], dim=1)
    at_nodes = (raw @ heads.prior_node_first).tanh_() @ heads.prior_node_last
    no_op = (batch.globals @ heads.prior_no_op_first).tanh_() @ heads.prior_no_op_last
    prior = torch.cat([no_op.flatten(1), at_nodes.flatten(1)], dim=1)
    deviation = torch.from_numpy(spread_of(prior)).clamp_min_(1e-6)
    prior = prior.sub_(prior.mean(dim=0)).mul_(heads.prior_scale).div_(deviation)
    return torch.cat(learned, dim=1).add_(prior)


def spread_of(values: Tensor) -> npt.NDArray[np.float32]:
    """Return the population standard deviation over the first axis: `values.std(dim=0, correction=0)`, bit by bit.

    PyTorch updates mean and variance in double precision (Welford) for one column after another; here all columns are
    updated at once.

    Args:
        values: Float32 [heads, columns].
    """
    mean = np.zeros(values.shape[1:])
    squares = np.zeros(values.shape[1:])
    for number, row in enumerate(values.numpy(), start=1):
        difference = row - mean
        mean += difference / number
        squares += difference * (row - mean)
    return np.sqrt(squares / len(values)).astype(np.float32)
