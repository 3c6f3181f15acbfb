"""Where a replay starts and ends in the flow."""

from enum import StrEnum


class ReplaySource(StrEnum):
    """The topics taken from the recording; everything after them is recomputed."""

    TELEMETRY = "telemetry"
    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"


class ReplayTarget(StrEnum):
    """The last topics that are recomputed."""

    SIGNALS = "signals"
    WINDOWS = "windows"
    GRAPHS = "graphs"
    DECISIONS = "decisions"
