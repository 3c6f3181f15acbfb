"""Between which levels of the flow a replay computes."""

from enum import StrEnum


class Level(StrEnum):
    """What is taken from the recording; everything after it is computed anew."""

    TELEMETRY = "telemetry"
    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"


class Target(StrEnum):
    """The last thing that is computed."""

    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"
    DECISIONS = "decisions"
