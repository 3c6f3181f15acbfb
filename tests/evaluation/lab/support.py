"""Short runs of the laboratory, and what they publish."""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from tamiyo.evaluation.lab.baselines import Baseline, baseline
from tamiyo.evaluation.lab.run import Run, RunResult, RunSpec
from tamiyo.schemas.adaptation import OutcomeStatus
from tamiyo.schemas.topics import Topic

SPEC = RunSpec("digits", seed=3, steps=300)
"""A run of half a second: `pump` loads a kernel at step 66 and unloads it at step 216."""


class Published:
    """An observer that keeps what a run publishes, in order."""

    def __init__(self) -> None:
        self.messages: list[tuple[Topic, bytes]] = []
        self.records: dict[str, list[Any]] = defaultdict(list)

    def __call__(self, topic: Topic, record: Any, data: bytes) -> None:
        self.messages.append((topic, data))
        self.records[topic.name].append(record)

    def digest(self) -> str:
        """Return a hash of all topics, bytes and their order."""
        whole = hashlib.sha256()
        for topic, data in self.messages:
            whole.update(topic.name.encode() + len(data).to_bytes(8, "big") + data)
        return whole.hexdigest()


def finished(
    policy: str | Baseline, spec: RunSpec = SPEC, at_graph: Callable[[Run], None] | None = None
) -> tuple[RunResult, Published]:
    """Train a run to its end, calling `at_graph` at every waiting graph; return its result and what it published."""
    published = Published()
    with Run(spec, baseline(policy) if isinstance(policy, str) else policy, observer=published) as run:
        while run.advance() is not None:
            if at_graph is not None:
                at_graph(run)
            run.decide()
        return run.result(), published


def executed(result: RunResult) -> list[str]:
    """Return the types of the executed adaptations, oldest first."""
    return [each.type for each in result.adaptations if each.status == OutcomeStatus.EXECUTED]


def first_adaptation(run: Run) -> int:
    """Advance a run under its policy to the first graph at which it adapts; return the action."""
    while (graph := run.advance()) is not None:
        choice = run.pipeline.choose(graph)
        if choice.index != 0:
            return choice.index
        run.decide(choice)
    raise AssertionError("the policy never adapts")
