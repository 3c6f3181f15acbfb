"""Between which levels of the flow a replay computes."""

from enum import StrEnum


class ReplaySource(StrEnum):
    """What is taken from the recording; everything after it is computed anew."""

    TELEMETRY = "telemetry"
    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"


class ReplayTarget(StrEnum):
    """The last thing that is computed."""

    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"
    DECISIONS = "decisions"
