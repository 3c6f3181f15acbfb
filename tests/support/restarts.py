"""A stage under crashes: the runner's part around it, with every process ending at a random moment."""

import random
from collections.abc import Callable, Sequence

from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tests.support.telemetry import outputs, prior_outputs

MAX_CRASHES = 8


def without_crashes(stage: Stage, log: Sequence[Incoming]) -> list[Output | Reject]:
    """Return what the stage produces from the whole log, record by record."""
    return [each for incoming in log for each in stage.feed([incoming])]


def with_crashes(make: Callable[[], Stage], log: Sequence[Incoming], rng: random.Random) -> list[Output | Reject]:
    """Return everything that reached the output topics.

    A crash comes between a batch's first delivery and its acknowledgement: some of the batch's outputs are published,
    in order, and none of its inputs is acknowledged. Commits are rarer than acknowledgements, so a restart reads from
    well before the crash.
    """
    topic = log[0].topic
    published: list[Output | Reject] = []
    committed = crashes = 0
    while True:
        stage = make()
        stage.restore(prior_outputs(outputs(published)))
        position = committed
        while position < len(log):
            batch = log[position : position + rng.randint(1, 12)]
            position += len(batch)
            produced = list(stage.feed(batch))
            if crashes < MAX_CRASHES and rng.random() < 0.1:
                crashes += 1
                published += produced[: rng.randint(0, len(produced))]
                break
            published += produced
            bound = min(stage.open_offsets().get(topic, position), position)
            assert bound >= committed, "an offset that was no longer needed is needed again"
            if rng.random() < 0.5:
                committed = bound
        else:
            return published
