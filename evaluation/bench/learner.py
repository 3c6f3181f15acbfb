"""The duration of one update of the learner: fresh experiences, filled up from replay."""

import time
from collections.abc import Sequence
from itertools import cycle, islice

from tamiyo.evaluation.common.measure import Result
from tamiyo.evaluation.common.policies import untrained_policy
from tamiyo.models.learner import Learner, UpdateReport
from tamiyo.schemas.identity import identity
from tamiyo.schemas.learning import Experience


def updates(seen: Sequence[Experience], *, repeats: int) -> list[Result]:
    """Measure `repeats` updates of the default size after a warm-up; replay has enough experiences from the start.

    `seen` is repeated under new ids, so that every update has as many fresh experiences as trigger one.
    """
    learner = Learner(untrained_policy())
    settings = learner.settings
    endless = (
        each.model_copy(update={"experience_id": identity("bench", number)}) for number, each in enumerate(cycle(seen))
    )
    for each in islice(endless, settings.batch_size):
        learner.restore_experience(each)
    values: list[float] = []
    reports: list[UpdateReport] = []
    for _ in range(1 + repeats):
        fresh = list(islice(endless, settings.fresh_batch))
        started = time.perf_counter()
        report = learner.learn(fresh)
        values.append(1000 * (time.perf_counter() - started))
        if report is None:
            raise RuntimeError(f"{settings.fresh_batch} fresh experiences triggered no update")
        reports.append(report)
    extra = {
        "fresh": settings.fresh_batch,
        "replayed": reports[-1].replayed,
        "epochs": settings.update_epochs,
        "layers": len(seen[0].graph.layer_id),
        "accepted": sum(report.accepted for report in reports[1:]),
    }
    return [Result("learner", "update", "ms", tuple(values[1:]), "lower", extra)]
