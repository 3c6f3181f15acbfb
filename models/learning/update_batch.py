"""The examples of one update, with what all its gradient steps share: it is computed once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamiyo.models.batch import GraphBatch, combine, masked_log_softmax
from tamiyo.models.ensemble import RewardEnsemble
from tamiyo.models.learning.example import Example, stack
from tamiyo.models.policy import Acted, PolicyOutput, TamiyoPolicy

CHUNK = 16  # graphs of one pass over the whole batch: at 50 layers its tensors stay in the processor's cache


class UpdateBatch:
    """The examples of one update."""

    def __init__(self, rewards: RewardEnsemble, examples: Sequence[Example]) -> None:
        """Collate the examples.

        Args:
            rewards: The learning policy's reward heads, whose priors no update changes.
            examples: At least one example.
        """
        self.examples = examples
        self.graph, self.action = stack(examples)
        graphs = [example.graph for example in examples]
        self._actions = [len(graph.mask) for graph in graphs]
        self._chunks = [combine(graphs[start : start + CHUNK]) for start in range(0, len(graphs), CHUNK)]
        priors = torch.cat([rewards.prior(chunk)[:, chunk.action_row] for chunk in self._chunks], dim=1)
        self._priors = torch.split(priors, self._actions, dim=1)

    @torch.no_grad()
    def act(self, policy: TamiyoPolicy) -> list[Acted]:
        """Return what the deciding part of a policy makes of each example, without gradients.

        Args:
            policy: The policy.
        """
        found = [policy.act(chunk) for chunk in self._chunks]
        sizes = [len(example.graph.x) for example in self.examples]
        nodes = torch.split(torch.cat([each.nodes for each in found]), sizes)
        whole = torch.split(torch.cat([each.whole for each in found]), 1)
        logits = torch.split(torch.cat([each.logits for each in found]), self._actions)
        return [Acted(*each) for each in zip(nodes, whole, logits, strict=True)]

    @torch.no_grad()
    def values(self, policy: TamiyoPolicy, acted: Sequence[Acted]) -> Tensor:
        """Return the value head's estimate for each example, [examples], without gradients.

        Args:
            policy: The policy.
            acted: What `act` returns for it.
        """
        values: Tensor = policy.value(torch.cat([each.whole for each in acted])).flatten()
        return values

    def log_probabilities(self, acted: Sequence[Acted]) -> Tensor:
        """Return the log-probabilities of all examples' actions, nats, [A].

        Args:
            acted: What `act` returns for a policy.
        """
        return masked_log_softmax(torch.cat([each.logits for each in acted]), self.graph.mask, self.graph.action_graph)

    def output(
        self, policy: TamiyoPolicy, inds: Sequence[int], graph: GraphBatch, settled: Sequence[Acted] | None
    ) -> PolicyOutput:
        """Return a policy's output for some of the examples.

        Args:
            policy: The policy that learns.
            inds: Which examples.
            graph: Their graphs, combined.
            settled: What `act` returns for the policy, if what decides does not learn any more; else None.
        """
        if settled is None:
            acted = policy.act(graph)
        else:
            chosen = [settled[index] for index in inds]
            acted = Acted(
                nodes=torch.cat([each.nodes for each in chosen]),
                whole=torch.cat([each.whole for each in chosen]),
                logits=torch.cat([each.logits for each in chosen]),
            )
        priors = [self._priors[index] for index in inds]
        # As in `RewardEnsemble`: no_op of each graph comes first.
        prior = torch.cat([*(each[:, :1] for each in priors), *(each[:, 1:] for each in priors)], dim=1)
        return policy.predict(graph, acted, prior)

    @torch.no_grad()
    def outputs(self, policy: TamiyoPolicy, settled: Sequence[Acted] | None) -> list[PolicyOutput]:
        """Return a policy's output for all examples, in parts, without gradients.

        Args:
            policy: The policy that learns.
            settled: As for `output`.
        """
        starts = range(0, len(self.examples), CHUNK)
        return [
            self.output(policy, range(start, start + chunk.graphs), chunk, settled)
            for start, chunk in zip(starts, self._chunks, strict=True)
        ]
