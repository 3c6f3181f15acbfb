"""The duration of one update of the learner, and of the gates and the canary that guard its release."""

import time
from collections.abc import Sequence
from itertools import cycle, islice

from tamiyo.evaluation.common.measure import Result
from tamiyo.evaluation.common.policies import untrained_policy
from tamiyo.models.learning.learner import Learner, UpdateReport
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.identity import identity
from tamiyo.schemas.learning import Experience
from tamiyo.streams.learner.release_guard import ReleaseGuard
from tamiyo.streams.settings import ReleaseSettings


def updates(seen: Sequence[Experience], *, repeats: int) -> list[Result]:
    """Measure `repeats` updates of the default size after a warm-up; replay has enough experiences from the start.

    `seen` is repeated under new ids, so that every update has as many fresh experiences as trigger one.
    """
    policy = untrained_policy()
    learner = Learner(policy)
    settings = learner.settings
    guard = ReleaseGuard(ReleaseSettings(), learner)
    guard.begin(learner.version, policy)
    guard.released(policy)
    guarding: list[float] = []

    def check(candidate: TamiyoPolicy) -> None:
        began = time.perf_counter()
        try:
            guard.check(candidate)
        finally:
            guarding[-1] += 1000 * (time.perf_counter() - began)

    learner.check = check
    endless = (
        each.model_copy(update={"experience_id": identity("bench", number)}) for number, each in enumerate(cycle(seen))
    )
    for each in islice(endless, settings.batch_size):
        learner.restore_experience(each)
        _show(guard, learner, each)
    values: list[float] = []
    reports: list[UpdateReport] = []
    for _ in range(1 + repeats):
        fresh = list(islice(endless, settings.fresh_batch))
        for each in fresh:
            learner.take(each)
        started = time.perf_counter()
        for each in fresh:
            _show(guard, learner, each)
        guard.live_difference()
        guarding.append(1000 * (time.perf_counter() - started))
        before = guarding[-1]
        started = time.perf_counter()
        report = learner.learn()
        values.append(1000 * (time.perf_counter() - started) - (guarding[-1] - before))
        if report is None:
            raise RuntimeError(f"{settings.fresh_batch} fresh experiences triggered no update")
        reports.append(report)
        if report.accepted:
            started = time.perf_counter()
            guard.released(learner.policy)
            guarding[-1] += 1000 * (time.perf_counter() - started)
    extra = {
        "fresh": settings.fresh_batch,
        "replayed": reports[-1].replayed,
        "epochs": settings.update_epochs,
        "layers": len(seen[0].graph.layer_id),
        "accepted": sum(report.accepted for report in reports[1:]),
    }
    return [
        Result("learner", "update", "ms", tuple(values[1:]), "lower", extra),
        Result("learner", "gates and canary of an update", "ms", tuple(guarding[1:]), "lower", {}),
    ]


def _show(guard: ReleaseGuard, learner: Learner, experience: Experience) -> None:
    """Show the guard an experience that the learner has taken."""
    example = learner.example(experience.experience_id)
    if example is not None:
        guard.take(example)
