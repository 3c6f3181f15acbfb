"""The stages that a replay runs between its source and its target, and the topics they read and write."""

from collections.abc import Mapping
from dataclasses import dataclass

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import LARGEST
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, Topic
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.stages.base import Stage
from tamiyo.streams.stages.registry import STAGES

FLOW = ("intake", "windows", "graphs", "decisions")
NEVER = LARGEST  # signals or seconds, more than any replay has

# Nothing in a replay may depend on wall-clock time or on its speed.
ENVIRONMENT: Mapping[str, str] = {
    "TAMIYO_WORKER_REPLAY": "true",
    # IntakeOrder waits for commits.
    "TAMIYO_WORKER_COMMIT_INTERVAL_S": "0.1",
    "TAMIYO_INTAKE_BUFFER_SIGNALS": str(NEVER),
    "TAMIYO_WINDOW_IDLE_TIMEOUT_S": "0",
    "TAMIYO_GRAPH_TOPOLOGY_TIMEOUT_S": str(NEVER),
    "TAMIYO_DECISION_IDLE_TIMEOUT_S": str(NEVER),
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Flow:
    """The stages of a replay, in the order of the flow."""

    stages: Mapping[str, type[Stage]]

    @classmethod
    def between(cls, source: ReplaySource, target: ReplayTarget) -> "Flow":
        """Return the stages from `source` to `target`; raises ConfigurationError where there is none."""
        first = list(ReplaySource).index(source)
        last = list(ReplayTarget).index(target)
        if first > last:
            raise ConfigurationError(f"no stage lies between {source} and {target}: choose a later --to")
        return cls({name: STAGES[name].load() for name in FLOW[first : last + 1]})

    @property
    def outputs(self) -> tuple[Topic, ...]:
        """Return the stages' output topics, in the order of the flow."""
        return tuple(topic for stage in self.stages.values() for topic in stage.outputs)

    @property
    def inputs(self) -> tuple[Topic, ...]:
        """Return the topics that are replayed message by message, and ended."""
        read = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.inputs)
        return tuple(topic for topic in read if topic not in self.outputs)

    @property
    def views(self) -> tuple[Topic, ...]:
        """Return the topics that are published first, whole; policies and orders come from the recording's files."""
        watched = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.views)
        return tuple(topic for topic in watched if topic not in (CHECKPOINTS, CONTROL))

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Return every topic that the stages need."""
        views = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.views)
        return (*self.inputs, *views, *self.outputs)

    @property
    def last(self) -> type[Stage]:
        """Return the stage that ends the replay."""
        return list(self.stages.values())[-1]
