"""What a signal is to the windows of its run: a repeat, late, or part of an open window."""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.streams.stages.windows.finalized_windows import FinalizedWindows


@dataclass(frozen=True, slots=True)
class Repeat:
    """The signal is already inside a window, open or published."""


@dataclass(frozen=True, slots=True)
class Late:
    """The windows up to `final_end` were final when the signal first arrived."""

    final_end: int


@dataclass(frozen=True, slots=True)
class Window:
    """The signal belongs in the window from `start`, at `clock`."""

    start: int
    clock: int


def classify(
    signal: HealthSignals,
    clock: int,
    offset: int,
    *,
    width: int,
    finalized: FinalizedWindows,
    passed: int,
    windows: Mapping[int, Container[str]],
) -> Repeat | Late | Window:
    """Return what a signal is to the windows of its run. Nothing is changed.

    1. A signal inside a closed window is a repeat.
    2. A signal whose window was final before it arrived is late. Only a source's last frame never is, since it ends
       the run: if idleness has closed its window, it counts in the next one.
    3. A signal whose window became final only after it first arrived is inside the window that was published before a
       restart: a repeat.
    4. A signal already in its open window is a repeat; any other belongs in that window.

    Args:
        signal: The signal.
        clock: Its position on the run's clock, in steps or ms.
        offset: Its offset on the input partition, which it keeps when it is read again after a restart.
        width: The width of windows, in the clock's unit.
        finalized: The windows that were closed.
        passed: The end of the last window that the run's watermark has passed, whether it held anything or not.
        windows: The ids inside the run's open windows, by the window's start.

    Returns:
        The class of the signal, with what the stage needs to act on it.
    """
    if finalized.contains(signal.signal_id):
        return Repeat()
    ends = finalized.run(signal.run_id)
    final_end = max(ends.end_before(offset) if ends else 0, passed)
    if clock < final_end:
        if not signal.final:
            return Late(final_end)
        clock = final_end
    if ends is not None and clock < ends.end:
        return Repeat()
    start = clock // width * width
    if signal.signal_id in windows.get(start, ()):
        return Repeat()
    return Window(start, clock)
