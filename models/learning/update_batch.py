"""The examples of one update, with what all its gradient steps share: it is computed once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tamiyo.models.batch import GraphBatch, combine, masked_log_softmax
from tamiyo.models.ensemble import RewardEnsemble
from tamiyo.models.learning.example import Example, stack
from tamiyo.models.policy import Acted, OutputAtActions, PolicyOutput, TamiyoPolicy

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
        self._priors = [rewards.prior(chunk) for chunk in self._chunks]
        of_actions = zip(self._priors, self._chunks, strict=True)
        self._prior = torch.cat([prior[:, chunk.action_row] for prior, chunk in of_actions], dim=1)[:, self.action]

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
        self,
        policy: TamiyoPolicy,
        inds: Sequence[int],
        graph: GraphBatch,
        action: Tensor,
        settled: Sequence[Acted] | None,
    ) -> OutputAtActions:
        """Return a policy's output for some of the examples, with the rewards of their actions.

        Args:
            policy: The policy that learns.
            inds: Which examples.
            graph: Their graphs, combined.
            action: Positions of their actions in the list of `graph`, int64 [len(inds)].
            settled: What `act` returns for the policy, if what decides does not learn any more; else None.
        """
        acted = policy.act(graph) if settled is None else _joined([settled[index] for index in inds])
        return policy.predict_at(graph, acted, action, self._prior[:, inds])

    @torch.no_grad()
    def outputs(self, policy: TamiyoPolicy, settled: Sequence[Acted] | None) -> list[PolicyOutput]:
        """Return a policy's output for all examples, in parts, without gradients.

        Args:
            policy: The policy that learns.
            settled: As for `output`.
        """
        found = []
        for number, (chunk, prior) in enumerate(zip(self._chunks, self._priors, strict=True)):
            start = number * CHUNK
            acted = policy.act(chunk) if settled is None else _joined(settled[start : start + CHUNK])
            found.append(policy.predict(chunk, acted, prior))
        return found


def _joined(acted: Sequence[Acted]) -> Acted:
    """Return what was made of several graphs as one batch has it."""
    return Acted(
        nodes=torch.cat([each.nodes for each in acted]),
        whole=torch.cat([each.whole for each in acted]),
        logits=torch.cat([each.logits for each in acted]),
    )
