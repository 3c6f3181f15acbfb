"""A stage under crashes: what the shell does around it, with every process ending at a random moment."""

import random
from collections.abc import Callable, Sequence

from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tests.support.telemetry import as_said, outputs

MAX_CRASHES = 8


def without_crashes(stage: Stage, log: Sequence[Incoming]) -> list[Output | Reject]:
    """Return what the stage says to the whole log, record by record."""
    return [one for incoming in log for one in stage.feed([incoming])]


def with_crashes(make: Callable[[], Stage], log: Sequence[Incoming], rng: random.Random) -> list[Output | Reject]:
    """Return everything that reached the output topics.

    A crash comes between a batch's first delivery and its acknowledgement: some of what the batch led to is out, in
    order, and nothing of it is acknowledged. Commits are rarer than acknowledgements, so reading begins well before.
    """
    topic = log[0].topic
    published: list[Output | Reject] = []
    committed = crashes = 0
    while True:
        stage = make()
        stage.restore(as_said(outputs(published)))
        position = committed
        while position < len(log):
            batch = log[position : position + rng.randint(1, 12)]
            position += len(batch)
            said = list(stage.feed(batch))
            if crashes < MAX_CRASHES and rng.random() < 0.1:
                crashes += 1
                published += said[: rng.randint(0, len(said))]
                break
            published += said
            bound = min(stage.open_offsets().get(topic, position), position)
            assert bound >= committed, "an offset that was not needed any more is needed again"
            if rng.random() < 0.5:
                committed = bound
        else:
            return published
