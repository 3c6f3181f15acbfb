"""Release gates: each stops a policy planted to be worse, and passes one that is not."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tamiyo.models.actions import to_action
from tamiyo.models.checkpoint import Verdict
from tamiyo.models.learning.example import Example
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.models.policy import BehaviourSettings, TamiyoPolicy
from tamiyo.schemas.errors import ConfigurationError, StepTooLarge, UpdateRejected
from tamiyo.streams.learner.gates import ReleaseGates
from tamiyo.streams.learner.golden import LAYERS, golden_decisions
from tamiyo.streams.learner.release_guard import ReleaseGuard
from tamiyo.streams.settings import LearnerSettings, ReleaseSettings
from tests.support.experiences import KINDS, make_example, make_experience, small_policy

FOSSILIZE, LOW_RANK = KINDS.index("fossilize_kernel"), KINDS.index("load_kernel:low_rank")
SURE = BehaviourSettings(max_spread=10.0)  # the policy decides everywhere, the baseline nowhere


def preferring(kind: int, strength: float) -> TamiyoPolicy:
    """The heuristic with more probability on one kind of action."""
    policy = small_policy(behaviour=SURE)
    with torch.no_grad():
        policy.get_parameter("node_actions.3.bias")[kind] += strength
    return policy


def gates(count: int = 80, reward: Callable[[int], float] = lambda action: 0.0, **fields: Any) -> ReleaseGates:
    """Gates with `count` decisions of ten runs, whose actions were drawn evenly, and the heuristic as incumbent."""
    made = ReleaseGates(ReleaseSettings(**fields), KINDS)
    for number in range(count):
        action = number % 11
        made.record(make_example(number, run_id=f"run-{number % 10}", action=action, reward=reward(action)))
    made.released(small_policy(behaviour=SURE))
    return made


def verdicts(made: ReleaseGates) -> dict[str, Verdict]:
    return {each.gate: each.verdict for each in made.results}


def test_the_incumbent_itself_passes() -> None:
    made = gates(gate_min_support=1)
    made.check(small_policy(behaviour=SURE))
    assert verdicts(made) == dict.fromkeys(("finite", "divergence", "golden", "off_policy"), Verdict.PASSED)
    assert made.failed is None


def test_before_the_first_release_there_is_nothing_to_compare_with() -> None:
    made = ReleaseGates(ReleaseSettings(), KINDS)
    made.check(small_policy())
    assert made.results == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["node_actions.3.bias", "rewards.prior_node_last"])
def test_weights_that_are_not_finite_are_stopped(name: str, value: float) -> None:
    made, candidate = gates(), small_policy(behaviour=SURE)
    with torch.no_grad():
        candidate.state_dict()[name].view(-1)[0] = value
    with pytest.raises(UpdateRejected, match=f"gate finite: weights that are not finite: {name}"):
        made.check(candidate)
    assert verdicts(made) == {"finite": Verdict.FAILED}


def test_outputs_that_are_not_finite_are_stopped() -> None:
    candidate = small_policy(behaviour=SURE)
    with torch.no_grad():
        for name in ("node_actions.3.bias", "node_actions.3.weight"):
            candidate.get_parameter(name).fill_(3e38)
    with pytest.raises(UpdateRejected, match="gate finite: the policy's output is not finite"):
        gates().check(candidate)


def test_a_jump_is_stopped() -> None:
    with pytest.raises(StepTooLarge, match=r"gate divergence: KL \d\.\d+.*the limit of KL is 0.2"):
        gates().check(preferring(LOW_RANK, 8.0))


def test_a_collapse_is_stopped() -> None:
    certain = small_policy(behaviour=SURE.model_copy(update={"temperature": 0.05}))
    with pytest.raises(StepTooLarge, match=r"gate divergence: .* expected at least 50% of the entropy"):
        gates(gate_max_kl=10).check(certain)


def test_an_obviously_wrong_action_is_stopped() -> None:
    candidate = preferring(FOSSILIZE, 12.0)
    made = gates(gates=("golden",))
    with pytest.raises(UpdateRejected, match="gate golden: a kernel that has contributed nothing for long"):
        made.check(candidate)
    made.released(candidate)
    made.check(copy.deepcopy(candidate))  # no worse than the incumbent: a learner must be able to leave it


def test_a_policy_that_earns_less_is_stopped() -> None:
    def reward(action: int) -> float:
        return -0.6 if action and (action - 1) % len(KINDS) == LOW_RANK else 0.1

    made = gates(reward=reward, gates=("off_policy",), gate_min_support=2)
    with pytest.raises(UpdateRejected, match=r"gate off_policy: -0\.\d+ return a decision.*the margin is 0.05"):
        made.check(preferring(LOW_RANK, 6.0))
    made = gates(reward=lambda action: -reward(action), gates=("off_policy",), gate_min_support=2)
    made.check(preferring(LOW_RANK, 6.0))
    assert verdicts(made)["off_policy"] is Verdict.PASSED


def test_returns_count_and_not_rewards_alone() -> None:
    """Low-rank kernels earn nothing at once, and much later on."""

    def later(example: Example) -> float:
        return 0.6 if example.action and (example.action - 1) % len(KINDS) == LOW_RANK else -0.1

    verdict = []
    for returns in (later, lambda example: -later(example)):
        made = ReleaseGates(ReleaseSettings(gates=("off_policy",), gate_min_support=2), KINDS, returns)
        for number in range(80):
            made.record(make_example(number, run_id=f"run-{number % 10}", action=number % 11, reward=0.0))
        made.released(small_policy(behaviour=SURE))
        with contextlib.suppress(UpdateRejected):
            made.check(preferring(LOW_RANK, 6.0))
        verdict.append(verdicts(made)["off_policy"])
    assert verdict == [Verdict.PASSED, Verdict.FAILED]


@pytest.mark.parametrize("strict", [False, True])
def test_without_evidence_a_candidate_passes_unless_the_gates_are_strict(strict: bool) -> None:
    made = ReleaseGates(ReleaseSettings(gates=("off_policy",), gate_strict=strict), KINDS)
    for number in range(50):
        made.record(make_example(number, run_id=f"run-{number % 2}"))
    made.released(small_policy())
    if strict:
        with pytest.raises(UpdateRejected, match="gate off_policy: too little evidence"):
            made.check(small_policy())
    else:
        made.check(small_policy())
    assert verdicts(made) == {"finite": Verdict.PASSED, "off_policy": Verdict.NO_EVIDENCE}


def test_the_verdict_does_not_depend_on_the_order_of_arrival() -> None:
    examples = [make_example(n, run_id=f"run-{n % 10}", action=n % 11, reward=0.01 * (n % 5)) for n in range(60)]
    results = []
    for order in (examples, examples[::-1]):
        made = ReleaseGates(ReleaseSettings(gate_min_support=1), KINDS)
        for example in order:
            made.record(example)
        made.released(small_policy(behaviour=SURE))
        made.check(preferring(LOW_RANK, 0.5))
        results.append(made.results)
    assert results[0] == results[1]


def test_what_was_checked_and_released_is_compared_with_next() -> None:
    made, first, second = gates(gate_min_support=1), preferring(LOW_RANK, 0.5), preferring(LOW_RANK, 1.0)
    made.check(first)
    made.released(first)
    made.check(second)
    kept = made.results
    fresh = gates(gate_min_support=1)
    fresh.released(first)
    fresh.check(second)
    assert kept == fresh.results


def test_a_newer_revision_replaces_the_older() -> None:
    made = ReleaseGates(ReleaseSettings(gates=("off_policy",), gate_min_support=1, gate_min_runs=2), KINDS)
    for revision, reward in enumerate((0.9, -0.9)):
        for number in range(20):
            made.record(make_example(number, run_id=f"run-{number}", action=1, reward=reward, revision=revision))
    made.released(small_policy(behaviour=SURE))
    with pytest.raises(UpdateRejected, match="from 20 decisions"):
        made.check(preferring(KINDS.index("load_kernel:parallel_expansion"), 6.0))


def test_an_unknown_gate_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match=r"gates=.*taste.* is wrong: expected tuple of `divergence` or"):
        LearnerSettings(gates=("taste",))


def test_a_learner_keeps_the_incumbent_when_a_gate_fails() -> None:
    settings = LearningSettings(fresh_batch=4, minimum_batch=3, batch_size=8, minibatch_size=4, update_epochs=1)
    learner = Learner(small_policy(), settings)
    before = copy.deepcopy(learner.policy.state_dict())

    def refuse(candidate: TamiyoPolicy) -> None:
        assert any(bool((candidate.state_dict()[name] != value).any()) for name, value in before.items())
        raise UpdateRejected("gate golden: no")

    learner.check = refuse
    report = learner.learn([make_experience(number) for number in range(4)])
    assert report is not None
    assert (report.accepted, report.version, report.reason) == (False, 0, "gate golden: no")
    assert all(bool((learner.policy.state_dict()[name] == value).all()) for name, value in before.items())
    assert len(learner.replay) == 4
    learner.check = None
    following = learner.learn([make_experience(number) for number in range(4, 8)])
    assert following is not None
    assert (following.accepted, following.version, following.replayed) == (True, 1, 4)


def learned(settings: ReleaseSettings, shortenings: int, batches: int = 12) -> list[str]:
    """Why each update of a nearly certain policy failed; empty for those that were released."""
    learning = LearningSettings(
        fresh_batch=16, minimum_batch=8, batch_size=32, learning_rate=1e-2, shortenings=shortenings, entropy_floor=0.0
    )
    policy = small_policy(behaviour=SURE.model_copy(update={"temperature": 0.5}))
    with torch.no_grad():
        policy.get_parameter("no_op.3.bias").add_(2.0)
    learner = Learner(policy, learning)
    guard = ReleaseGuard(settings, learner)
    guard.begin(0, learner.policy)
    guard.released(learner.policy)
    reasons = []
    for batch in range(batches):
        for number in range(16 * batch, 16 * batch + 16):
            action = number % 4
            reward = -0.5 if action else 0.5
            experience = make_experience(number, run_id=f"run-{number % 5}", action=action, reward=reward)
            learner.take(experience)
            example = learner.example(experience.experience_id)
            assert example is not None
            guard.take(example)
        report = learner.learn()
        assert report is not None
        reasons.append("" if report.accepted else report.reason)
        if report.accepted:
            guard.released(learner.policy)
    return reasons


@pytest.mark.parametrize(
    ("limits", "reason"), [({}, "of the entropy"), ({"gate_max_kl": 0.005}, "limit of KL is 0.005")]
)
def test_a_policy_that_is_nearly_certain_can_still_learn(limits: dict[str, float], reason: str) -> None:
    """Seen in a soak: each update lost half of the little entropy there was, so all failed and nothing was released."""
    settings = ReleaseSettings(gates=("divergence",), **limits)
    without = learned(settings, shortenings=0)
    assert sum(reason in each for each in without) >= 4
    assert not any(learned(settings, shortenings=3))


def test_golden_decisions_name_actions_that_could_be_taken() -> None:
    paused, budget, idle, useful = golden_decisions(KINDS)
    assert paused.batch.mask.tolist() == [True] + [False] * len(LAYERS) * len(KINDS)
    assert not (budget.batch.mask.numpy() & budget.wrong).any()
    assert budget.wrong.sum() == 2 * len(LAYERS)
    for case, action in ((idle, "fossilize_kernel"), (useful, "unload_kernel")):
        (index,) = case.wrong.nonzero()[0].tolist()
        assert case.batch.mask[index]
        found = to_action(index, LAYERS, KINDS)
        assert (found.type, found.layer_id) == (action, "middle")
