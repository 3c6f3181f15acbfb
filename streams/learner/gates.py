"""Release gates: what an updated policy must pass, in order, before it is released.

Each gate compares the candidate with the incumbent, the policy released last, and returns a verdict with its reason.
All of them judge the distribution that decisions would be sampled from, not the network's bare output. A candidate that
fails is rolled back like any failed update: the incumbent stays, and learning goes on from its weights.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from tamiyo.models.batch import GraphBatch, combine
from tamiyo.models.behaviour import distributions, entropy_of
from tamiyo.models.checkpoint import GateResult, Verdict
from tamiyo.models.learning.example import Example
from tamiyo.models.off_policy import OffPolicyCase, policy_difference
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.errors import StepTooLarge, UpdateRejected
from tamiyo.streams.learner.golden import GoldenDecision, golden_decisions
from tamiyo.streams.settings import ReleaseSettings

CHUNK = 32  # graphs of a forward pass: larger batches no longer fit the processor's cache

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What a policy would do at one graph."""

    probabilities: Array
    """[actions]."""
    predicted: Array
    """[actions]: the ensemble's mean reward, bounded to [-1, 1]."""
    value: float
    """Expected rewards from here to the end of the run."""

    @property
    def returns(self) -> Array:
        """What the policy expects of each action and all that follows it, [actions]: value + its reward's advantage."""
        return self.value + self.predicted - float(self.probabilities @ self.predicted)


@dataclass(frozen=True, slots=True)
class State:
    """One rewarded decision to compare policies on."""

    example: Example
    rank: bytes
    """A hash of the experience's id: a random order that does not depend on when experiences arrive."""

    @classmethod
    def of(cls, example: Example) -> Self:
        """Return a state with its rank."""
        rank = hashlib.blake2b(example.experience_id.encode(), digest_size=8, person=b"gates").digest()
        return cls(example, rank)


@dataclass(slots=True)
class Comparison:
    """A candidate beside its incumbent, with their behaviour at the same graphs."""

    broken: Sequence[str]
    """Names of the candidate's weights that are not finite."""
    golden: Sequence[GoldenDecision]
    pinned: Sequence[State]
    sample: Sequence[State]
    new: Mapping[str, Behaviour] = field(default_factory=dict)
    """The candidate's behaviour, by experience id or golden decision; empty if its weights are not finite."""
    old: Mapping[str, Behaviour] = field(default_factory=dict)
    """The incumbent's."""


class Gate(Protocol):
    """One check of a candidate."""

    name: str

    def check(self, comparison: Comparison) -> GateResult:
        """Return the verdict."""


class FiniteGate:
    """Weights and behaviour are finite."""

    name = "finite"

    def check(self, comparison: Comparison) -> GateResult:
        """Check the weights; where they are finite, the probabilities and predictions too."""
        if comparison.broken:
            return _failed(self, f"weights that are not finite: {', '.join(comparison.broken[:3])}")
        for behaviour in comparison.new.values():
            if not (np.isfinite(behaviour.probabilities).all() and np.isfinite(behaviour.returns).all()):
                return _failed(self, "the policy's output is not finite")
        return _passed(self, f"{len(comparison.new)} states")


class DivergenceGate:
    """On the pinned states, the candidate stays close to the incumbent and keeps exploring."""

    name = "divergence"

    def __init__(self, settings: ReleaseSettings) -> None:
        self._settings = settings

    def check(self, comparison: Comparison) -> GateResult:
        """Check the mean KL divergence and the mean entropy."""
        if not comparison.pinned:
            return _no_evidence(self, "no recorded state with a choice yet")
        pairs = [
            (comparison.old[each.example.experience_id], comparison.new[each.example.experience_id])
            for each in comparison.pinned
        ]
        kl = float(np.mean([_divergence(old.probabilities, new.probabilities) for old, new in pairs]))
        entropy = float(np.mean([entropy_of(new.probabilities) for _, new in pairs]))
        before = float(np.mean([entropy_of(old.probabilities) for old, _ in pairs]))
        measured = f"KL {kl:.3f}, entropy {before:.3f} to {entropy:.3f} nats on {len(pairs)} states"
        if kl > self._settings.gate_max_kl:
            return _failed(self, f"{measured}; the limit of KL is {self._settings.gate_max_kl}")
        # Relative to the incumbent's, because the heuristic's own is low wherever it waits.
        if entropy < self._settings.gate_entropy_share * before:
            share = self._settings.gate_entropy_share
            return _failed(self, f"{measured}; expected at least {share:.0%} of the entropy")
        return _passed(self, measured)


class GoldenGate:
    """No golden decision gives much probability to a wrong action."""

    name = "golden"

    def __init__(self, settings: ReleaseSettings) -> None:
        self._limit = settings.gate_golden_mass

    def check(self, comparison: Comparison) -> GateResult:
        """Check each golden decision; a mass above the limit fails unless the incumbent's is as large."""
        largest = 0.0
        for each in comparison.golden:
            mass, before = (
                float(behaviour[each.name].probabilities[each.wrong].sum())
                for behaviour in (comparison.new, comparison.old)
            )
            if mass > max(self._limit, before):
                return _failed(self, f"{each.name}: the wrong actions have probability {mass:.3f}, limit {self._limit}")
            largest = max(largest, mass)
        return _passed(self, f"{len(comparison.golden)} decisions, at most {largest:.3f} on wrong actions")


class OffPolicyGate:
    """Recent decisions do not show that the candidate earns less than the incumbent.

    What counts is the return of a decision, so that a policy may give up a reward for larger ones later. To the first
    order, the mean difference is what changes in the sum over a run, a decision: the performance difference lemma of
    Kakade and Langford, "Approximately optimal approximate reinforcement learning" (2002).

    The learner has learned from most of these decisions, so the estimate flatters the candidate. The canary finds
    what it misses.
    """

    name = "off_policy"

    def __init__(self, settings: ReleaseSettings, returns: Callable[[Example], float]) -> None:
        self._settings = settings
        self._returns = returns

    def check(self, comparison: Comparison) -> GateResult:
        """Check the lower bound of candidate minus incumbent, doubly robust."""
        cases = []
        for each in comparison.sample:
            example = each.example
            old, new = (behaviour[example.experience_id] for behaviour in (comparison.old, comparison.new))
            cases.append(
                OffPolicyCase(
                    example.run_id,
                    example.action,
                    self._returns(example),
                    example.confidence,
                    float(np.exp(example.log_propensity)),
                    new.probabilities,
                    old.probabilities,
                    old.returns,
                )
            )
        found = policy_difference(cases, seed=_seed(comparison.sample))
        settings = self._settings
        measured = (
            f"{found.mean:+.4f} return a decision, at least {found.lower:+.4f}, from {len(cases)} decisions of "
            f"{found.runs} runs (effective {found.support:.0f})"
        )
        if found.runs < settings.gate_min_runs or found.support < settings.gate_min_support:
            return _no_evidence(self, measured)
        if found.lower < -settings.gate_margin:
            return _failed(self, f"{measured}; the margin is {settings.gate_margin}")
        return _passed(self, measured)


def _reward(example: Example) -> float:
    return example.reward


class ReleaseGates:
    """Runs the gates, and keeps what they need: the incumbent, pinned states and recent decisions.

    The pinned states are those whose experience ids have the smallest hashes of all seen since the start, and the
    sample those with the smallest hashes of the latest decisions: both are random, and neither depends on the order of
    arrival. Memory is bounded by `gate_pinned` and `gate_window` examples of about 5 kB.
    """

    def __init__(
        self, settings: ReleaseSettings, kinds: Sequence[str], returns: Callable[[Example], float] = _reward
    ) -> None:
        """Make the gates.

        Args:
            settings: The gates and their limits.
            kinds: Kinds of action of the policy.
            returns: The return of a decision as far as it is known; by default its own reward.
        """
        self._settings = settings
        known: dict[str, Gate] = {
            gate.name: gate
            for gate in (DivergenceGate(settings), GoldenGate(settings), OffPolicyGate(settings, returns))
        }
        self._gates = [FiniteGate(), *(known[name] for name in settings.gates)]
        self._golden = golden_decisions(kinds) if "golden" in settings.gates else []
        self._pinned: dict[str, State] = {}
        self._recent: OrderedDict[str, State] = OrderedDict()
        self._incumbent: TamiyoPolicy | None = None
        self._behaviour: dict[str, Behaviour] = {}
        """The incumbent's, by experience id or golden decision."""
        self._checked: dict[str, Behaviour] = {}
        """The last candidate's."""
        self.results: tuple[GateResult, ...] = ()
        """Verdicts on the last candidate, up to the first failure."""

    @property
    def failed(self) -> GateResult | None:
        """The last candidate's failure; None if it passed."""
        if not self.results:
            return None
        last = self.results[-1]
        strict = last.verdict is Verdict.NO_EVIDENCE and self._settings.gate_strict
        return last if strict or last.verdict is Verdict.FAILED else None

    def record(self, example: Example) -> None:
        """Take a rewarded decision, or a newer revision of its reward."""
        state = State.of(example)
        name = example.experience_id
        self._recent[name] = state
        while len(self._recent) > self._settings.gate_window:
            self._recent.popitem(last=False)
        if example.choices > 1:  # without a choice, policies cannot differ
            self._pinned[name] = state
            if len(self._pinned) > self._settings.gate_pinned:
                del self._pinned[max(self._pinned, key=lambda each: self._pinned[each].rank)]

    def released(self, policy: TamiyoPolicy) -> None:
        """Take a released policy as the incumbent."""
        if self._incumbent is None or self._incumbent.config != policy.config:
            self._incumbent = TamiyoPolicy(policy.config).eval()
        self._incumbent.load_state_dict(policy.state_dict())
        self._incumbent.calibration = policy.calibration
        # What was released is what was checked last, or another policy, such as one that is returned to.
        self._behaviour = self._checked if self.results and self.failed is None else {}
        self._checked = {}
        self.results = ()

    def check(self, candidate: TamiyoPolicy) -> None:
        """Run the gates in order up to the first failure.

        Raises:
            UpdateRejected: A gate failed.
            StepTooLarge: The candidate is too far from the incumbent.
        """
        incumbent = self._incumbent
        self.results = ()
        if incumbent is None:
            return
        pinned = sorted(self._pinned.values(), key=lambda each: each.rank) if self._uses("divergence") else []
        recent = sorted(self._recent.values(), key=lambda each: each.rank) if self._uses("off_policy") else []
        comparison = Comparison(_broken(candidate), self._golden, pinned, recent[: self._settings.gate_sample])
        if not comparison.broken:
            graphs = {each.name: each.batch for each in self._golden}
            examples = [each.example for each in (*comparison.pinned, *comparison.sample)]
            graphs.update({each.experience_id: each.graph for each in examples})
            comparison.new = self._checked = _evaluate(candidate, graphs)
            known = {name: self._behaviour[name] for name in graphs if name in self._behaviour}
            missing = {name: graph for name, graph in graphs.items() if name not in known}
            comparison.old = self._behaviour = {**known, **_evaluate(incumbent, missing)}
        for gate in self._gates:
            self.results = (*self.results, gate.check(comparison))
            if (failed := self.failed) is not None:
                rejection = StepTooLarge if gate.name == DivergenceGate.name else UpdateRejected
                raise rejection(f"gate {failed.gate}: {failed.reason}")

    def _uses(self, gate: str) -> bool:
        return gate in self._settings.gates


def _evaluate(policy: TamiyoPolicy, graphs: Mapping[str, GraphBatch]) -> dict[str, Behaviour]:
    """Return a policy's behaviour at graphs, by name."""
    names = list(graphs)
    found: dict[str, Behaviour] = {}
    for start in range(0, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        batch = combine([graphs[name] for name in chunk])
        probabilities, predicted, values = distributions(policy, batch)
        ends = pairwise(batch.offsets.tolist())
        for name, (first, end), value in zip(chunk, ends, values.tolist(), strict=True):
            found[name] = Behaviour(probabilities[first:end], np.clip(predicted[first:end], -1.0, 1.0), value)
    return found


def _broken(policy: TamiyoPolicy) -> list[str]:
    """Return the names of weights that are not finite."""
    # A sum takes a third of the time of `isfinite`, and float64 does not overflow.
    sums = {name: float(value.sum(dtype=torch.float64)) for name, value in policy.state_dict().items()}
    return [name for name, total in sums.items() if not math.isfinite(total)]


def _seed(sample: Sequence[State]) -> int:
    """Return a seed that depends on the sample alone: the same decisions give the same verdict after a restart."""
    return int.from_bytes(hashlib.blake2b(b"".join(each.rank for each in sample), digest_size=8).digest(), "big")


def _divergence(old: Array, new: Array) -> float:
    """Return KL(old || new), nats; the floor of the behaviour keeps every legal action above 0."""
    possible = old > 0
    return float((old[possible] * np.log(old[possible] / new[possible])).sum())


def _passed(gate: Gate, reason: str) -> GateResult:
    return GateResult(gate=gate.name, verdict=Verdict.PASSED, reason=reason)


def _failed(gate: Gate, reason: str) -> GateResult:
    return GateResult(gate=gate.name, verdict=Verdict.FAILED, reason=reason)


def _no_evidence(gate: Gate, reason: str) -> GateResult:
    return GateResult(gate=gate.name, verdict=Verdict.NO_EVIDENCE, reason=f"too little evidence: {reason}")
