"""What a replay runs and what it feeds: the stages between two levels of the flow, and the topics that go in."""

from collections.abc import Mapping
from dataclasses import dataclass

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, Topic
from tamiyo.streams.replay.levels import ReplaySource, ReplayTarget
from tamiyo.streams.stages.base import Stage
from tamiyo.streams.stages.registry import STAGES

FLOW = ("intake", "windows", "graphs", "decisions")
NEVER = 10**15  # signals, or seconds: more than any replay has

# Wall-clock time means nothing in a replay, and nothing may depend on how fast it goes.
ENVIRONMENT: Mapping[str, str] = {
    "TAMIYO_WORKER_REPLAY": "true",
    # What waits for the end of a stretch waits for its commit.
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
    def between(cls, level: ReplaySource, target: ReplayTarget) -> "Flow":
        """Return the stages from `level` to `target`; raises ConfigurationError where there is none between."""
        first = list(ReplaySource).index(level)
        last = list(ReplayTarget).index(target)
        if first > last:
            raise ConfigurationError(f"nothing lies between {level} and {target}: choose a later --to")
        return cls({name: STAGES[name].load() for name in FLOW[first : last + 1]})

    @property
    def outputs(self) -> tuple[Topic, ...]:
        """Return what the stages publish, in the order of the flow."""
        return tuple(topic for stage in self.stages.values() for topic in stage.outputs)

    @property
    def inputs(self) -> tuple[Topic, ...]:
        """Return what is published to the stages in its own time, and ended."""
        read = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.inputs)
        return tuple(topic for topic in read if topic not in self.outputs)

    @property
    def views(self) -> tuple[Topic, ...]:
        """Return what stands before anything else is published. Policies and orders are not read from a topic."""
        watched = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.views)
        return tuple(topic for topic in watched if topic not in (CHECKPOINTS, CONTROL))

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Return every topic that must exist for the stages to run."""
        views = dict.fromkeys(topic for stage in self.stages.values() for topic in stage.views)
        return (*self.inputs, *views, *self.outputs)

    @property
    def last(self) -> type[Stage]:
        """Return the stage whose end is the replay's."""
        return list(self.stages.values())[-1]
