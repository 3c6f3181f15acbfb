"""Static networks to compare with: what a policy's run has grown in the end, had it been there from the first step.

- `static`: the run's own network with the kernels with which the policy's run ends, all there from the first step at
  their full share of the output. Same initial values of network and kernels, same data, no adaptation.
- `static_wider`: the task's network without kernels, its hidden widths scaled to as many parameters.

Both follow a run of the policy `builtin`; `static:heuristic` follows the heuristic's. No policy could decide this,
since a run begins small: these are runs of another network, in which nobody decides. `trained_otherwise` knows all
names of that kind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tamiyo.evaluation.lab.baselines import GROMO, STATICS, Never, baseline
from tamiyo.evaluation.lab.gromo_growth import require_gromo, train_gromo
from tamiyo.evaluation.lab.run import Run, RunResult, RunSpec
from tamiyo.schemas.errors import ConfigurationError

STATIC, WIDER = STATICS
FOLLOWED = "builtin"
"""Policy whose final structure is trained unless another one is named."""

UNREAD: dict[str, dict[str, Any]] = {
    "host": {"ramp_steps": 0, "sample_interval": 2**31 - 1},
    "rewards": {"estimator": "rule"},
}
"""Settings of a run of which nobody reads the telemetry, and whose kernels have their full share from the start."""

KEPT = 8
"""Ended runs that a process remembers, so that both static networks follow one run of the policy."""
_ended: OrderedDict[tuple[str, str, int, int], RunResult] = OrderedDict()


@dataclass(frozen=True, slots=True)
class StaticNetwork:
    """A name such as `static` or `static_wider:heuristic`, taken apart."""

    kind: str
    policy: str
    """Whose final structure it has."""


def trained_otherwise(name: str) -> Callable[[RunSpec], RunResult] | None:
    """Return what trains a run in which no policy decides; None if the name is that of a policy.

    Raises:
        ConfigurationError: The name is of that kind, but cannot be trained.
    """
    if name == GROMO:
        require_gromo()
        return train_gromo
    network = static_network(name)
    return None if network is None else partial(train_static, network)


def static_network(name: str) -> StaticNetwork | None:
    """Return which static network a baseline's name means; None if it names a policy.

    Raises:
        ConfigurationError: It follows a policy that does not exist, or that grows nothing to follow.
    """
    kind, _, policy = name.partition(":")
    if kind not in STATICS:
        return None
    policy = policy or FOLLOWED
    if policy.partition(":")[0] in STATICS:
        raise ConfigurationError(f"{name}: expected a policy after {kind}:, such as {kind}:heuristic")
    baseline(policy)
    return StaticNetwork(kind, policy)


def remember(policy: str, spec: RunSpec, result: RunResult) -> None:
    """Keep the result of a policy's run to its end, which static networks of the same run may follow."""
    _ended[_key(policy, spec)] = result
    while len(_ended) > KEPT:
        _ended.popitem(last=False)


def train_static(network: StaticNetwork, spec: RunSpec) -> RunResult:
    """Train a static network as a run of `spec`, after the run of its policy, which is made first unless remembered.

    Its result has the budgets of the policy's run: `objective` compares at the compute of never adapting.

    Args:
        network: Which one.
        spec: Task, seed and length.
    """
    policy = _ended.get(_key(network.policy, spec))
    if policy is None:
        with Run(spec, baseline(network.policy), settings={"rewards": {"estimator": "rule"}}) as run:
            policy = run.finish()
        remember(network.policy, spec, policy)
    if network.kind == STATIC:
        spec = replace(spec, kernels=tuple(policy.kernels))
    else:
        spec = replace(spec, parameters=policy.parameters + policy.curve.kernel_parameters[-1])
    with Run(spec, Never(), settings=UNREAD) as run:
        run.mute()
        result = run.finish()
    return replace(result, compute=policy.compute, budget=policy.budget)


def _key(policy: str, spec: RunSpec) -> tuple[str, str, int, int]:
    return spec.task, policy, spec.seed, spec.planned
