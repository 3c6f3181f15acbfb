"""Windows: the signals of a run, gathered by its own clock into tumbling windows that are final once.

A window [start, end) closes when the run's watermark has passed its end by the grace: then the slowest source that
reports every step is past the window, and since each source sends in order, nothing of it can be missing. The content
is computed at that moment, from the window's signals in order of event time. A signal that arrives later is late.

Idle runs close on a timeout, in live mode only. The state is the open windows: a restart reads again from the lowest
offset among their signals, and restores what was final from the windows already published.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.direct.signals import decode_signals
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.topics import SIGNALS, WINDOWS, Topic
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.windows.classification import Late, Repeat, Window, classify
from tamiyo.streams.stages.windows.finalized_windows import FinalizedWindows
from tamiyo.streams.stages.windows.log_clock import LogClock
from tamiyo.streams.stages.windows.open_windows import OpenRun, OpenWindows
from tamiyo.streams.stages.windows.window_record import window_record


class WindowsStage(Stage):
    """The windows of one partition of signals.

    Args:
        partition: The partition of `tamiyo.health.signals`.
        settings: The clock, width and grace of windows, and the bounds on what is held.
        views: Not used: windows need no compacted topic.
    """

    name: ClassVar[str] = "windows"
    inputs: ClassVar[tuple[Topic, ...]] = (SIGNALS,)
    outputs: ClassVar[tuple[Topic, ...]] = (WINDOWS,)
    views: ClassVar[tuple[Topic, ...]] = ()

    @classmethod
    def decode(cls, topic: Topic, value: bytes | None) -> HealthSignals:
        """Return a signal.

        Args:
            topic: That of signals.
            value: The message's value.
        """
        return decode_signals(value)

    def __init__(self, partition: int, settings: WindowSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """received, repeated, late and rejected signals; published windows, the idle and the forced among them."""
        self._open = OpenWindows()
        self._finalized = FinalizedWindows()
        self._log_clock = LogClock()

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Restore which windows were final, since which input, and which signals are inside them.

        Args:
            outputs: The windows this partition has published, oldest first. One without a source offset counts as
                closed by the newest input that any before it names.
        """
        newest = -1
        for output in outputs:
            self._finalized.add_signals(output.member_ids)
            offset = output.sources.get(SIGNALS.name, newest)
            newest = max(newest, offset)
            if output.record.clock == self.settings.clock:
                self._finalized.add(output.record.run_id, output.record.end, offset)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Put signals into their windows.

        Args:
            batch: Signals in order of their offsets.

        Returns:
            The windows that these signals closed, and the signals that are late or cannot be used, in order.
        """
        result: list[Output | Reject] = []
        for incoming in batch:
            self.counts["received"] += 1
            self._log_clock.record(incoming.timestamp_ms)
            match self._classify(incoming):
                case Repeat():
                    self.counts["repeated"] += 1
                case Late(final_end):
                    self.counts["late"] += 1
                    result.append(self._late(incoming, final_end))
                case Window() as place:
                    result += self._add(incoming, place)
        return result

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Close the windows of idle runs.

        Idleness is measured on the log's own time, which runs on while no signal arrives: a worker that catches up does
        not take the distance between a run's records for idleness.

        Args:
            now_ms: The steady clock, ms since the epoch.

        Returns:
            The windows closed.
        """
        if not self.settings.idle_timeout_s:
            return ()
        log_now_ms = self._log_clock.tick(now_ms, read_all=self.backlog == 0)
        result: list[Output] = []
        for run in list(self._open):
            if log_now_ms - run.active_ms < 1000 * self.settings.idle_timeout_s:
                break
            self.counts["idle"] += len(run.windows)
            result += self._close_run(run, run.last)
        return result

    def flush(self) -> Sequence[Output]:
        """Close and return every open window, at the end of a replay."""
        return [output for run in list(self._open) for output in self._close_run(run, run.last)]

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset of a signal in an open window, by topic; nothing if no window is open."""
        offset = self._open.lowest_offset()
        return {} if offset is None else {SIGNALS.name: offset}

    def _classify(self, incoming: Incoming) -> Repeat | Late | Window:
        signal: HealthSignals = incoming.record
        run = self._open.run(signal.run_id)
        return classify(
            signal,
            signal.step if self.settings.clock == "step" else signal.time_ms,
            incoming.offset,
            width=self.settings.width,
            finalized=self._finalized,
            passed=run.passed if run else 0,
            windows=run.windows if run else {},
        )

    def _late(self, incoming: Incoming, final_end: int) -> Reject:
        signal: HealthSignals = incoming.record
        if self.settings.clock == "step":
            reason = f"step {signal.step} is late: the run's windows up to step {final_end} were final"
        else:
            reason = f"event time {signal.time_ms} ms is late: the run's windows up to {final_end} ms were final"
        return Reject(incoming, reason, late=True)

    def _add(self, incoming: Incoming, place: Window) -> Sequence[Output | Reject]:
        """Put a signal into its window; return the windows this closes, or its rejection."""
        try:
            run = self._open.add(incoming, place)
            run.active_ms = self._log_clock.ms
        except RecordError as error:
            self.counts["rejected"] += 1
            return (Reject(incoming, str(error)),)
        return [*self._close_final(run, incoming), *self._close_excess(incoming)]

    def _close_final(self, run: OpenRun, source: Incoming) -> Sequence[Output]:
        """Close what a run's newest signal has made final."""
        settings = self.settings
        if run.watermark.finished:
            return self._close_run(run, source, final=True)
        due = run.advance(delay=settings.delay, grace=settings.grace, width=settings.width)
        return [self._close(run, start, source) for start in due]

    def _close_excess(self, source: Incoming) -> Sequence[Output]:
        """Close early what exceeds the bounds: the oldest windows of the fullest runs, then the longest idle runs."""
        result: list[Output] = []
        while self._open.rows > self.settings.max_open_signals:
            fullest = self._open.fullest()
            self.counts["forced"] += 1
            result.append(self._close(fullest, min(fullest.windows), source))
        while len(self._open) > self.settings.max_open_runs:
            idle = next(iter(self._open))
            self.counts["forced"] += len(idle.windows)
            result += self._close_run(idle, source)
        return result

    def _close_run(self, run: OpenRun, source: Incoming, *, final: bool = False) -> Sequence[Output]:
        """Close all windows of a run, oldest first; `final`: the newest is the run's last."""
        starts = sorted(run.windows)
        return [self._close(run, start, source, final=final and start == starts[-1]) for start in starts]

    def _close(self, run: OpenRun, start: int, source: Incoming, *, final: bool = False) -> Output:
        """Close one window; `source` is the input that made it final."""
        window = self._open.close(run, start)
        signal_ids = tuple(window.contributions)
        self._finalized.close(run.run_id, start + self.settings.width, source.offset, signal_ids)
        self.counts["published"] += 1
        record = window_record(run.run_id, window, self.settings, final=final)
        return Output(WINDOWS, record, record.window_id, source, signal_ids)
