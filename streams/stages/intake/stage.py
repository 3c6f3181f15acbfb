"""Intake: five telemetry topics become one log of health signals: validated, scored, filtered and shed under overload.

Every frame gives one `HealthSignals`, in order of arrival. Priority decides which layer-signals survive, never which
frame goes first, since the watermark downstream relies on each source's own order.

Nothing is held back: a frame can be committed once its signal is published. The rolling deviation starts anew after a
restart: it decides what is dropped under overload or by the filter, and no value of a published signal.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import compress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import SAMPLING, HealthSignals
from tamiyo.schemas.columns import Columns
from tamiyo.schemas.direct.frames import LayerFrame, decode_frame
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import identity
from tamiyo.schemas.telemetry import ErrorRecoveryEvent, Frame
from tamiyo.schemas.topics import SIGNALS, TELEMETRY, Topic
from tamiyo.streams.settings import IntakeSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.intake.anomaly import HIGHEST, Measured, RunDeviations
from tamiyo.streams.stages.intake.frame_metrics import FrameMetrics, read
from tamiyo.streams.stages.intake.shedding import draws, survival

NO_METRICS, NO_SAMPLING = Columns(), Columns(names=SAMPLING)
SOURCES = frozenset(topic.name for topic in TELEMETRY)


@dataclass(slots=True)
class _Scored:
    source: Incoming
    signal_id: str
    content: FrameMetrics
    priority: npt.NDArray[np.float64]
    """[rows], 0..`HIGHEST`."""
    passing: npt.NDArray[np.bool_]
    """[rows], what the filter lets through."""


class IntakeStage(Stage):
    """The health signals of one partition of the five telemetry topics.

    Args:
        partition: The partition of the telemetry topics.
        settings: What is valid, what is unusual, what is filtered, and when layer-signals are shed.
        views: Not used: intake needs no compacted topic.
    """

    name: ClassVar[str] = "intake"
    inputs: ClassVar[tuple[Topic, ...]] = TELEMETRY
    outputs: ClassVar[tuple[Topic, ...]] = (SIGNALS,)
    views: ClassVar[tuple[Topic, ...]] = ()

    @classmethod
    def decode(cls, topic: Topic, value: bytes | None) -> Frame | LayerFrame:
        """Return a frame, that of layers as a matrix.

        Args:
            topic: One of the five telemetry topics.
            value: The message's value.
        """
        frame: type[Any] = topic.record
        return decode_frame(value, frame)

    def __init__(self, partition: int, settings: IntakeSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """received, rejected and repeated frames; layer-signals processed, filtered and shed."""
        self._seen: OrderedDict[str, dict[str, None]] = OrderedDict()
        """The signal ids of each run, oldest first; the longest idle run first."""
        self._deviations = RunDeviations(
            frames=settings.deviation_frames, minimum=settings.deviation_minimum, cells=settings.deviation_cells
        )
        self._filters = bool(settings.minimum_priority > 0 or settings.ignored_layers)
        self._active_ms: OrderedDict[str, int] = OrderedDict()
        """By run, the time of the tick before its newest frame; the longest idle first."""
        self._now_ms: int | None = None
        """The last tick."""

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Restore which frames were published.

        Args:
            outputs: The signals this partition has published, oldest first.
        """
        for output in outputs:
            self._is_repeat(output.record.run_id, output.identity)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Turn frames into signals.

        Args:
            batch: Frames in order of arrival, of any of the five topics.

        Returns:
            One signal a frame, or its rejection, in order; nothing for a frame that was seen before.
        """
        scored: list[_Scored | Reject] = []
        for incoming in batch:
            try:
                frame = self._read(incoming)
            except RecordError as error:
                self.counts["rejected"] += 1
                scored.append(Reject(incoming, str(error)))
                continue
            if frame is not None:
                scored.append(frame)
        self.counts["received"] += len(batch)
        self.counts["repeated"] += len(batch) - len(scored)
        frames = [each for each in scored if isinstance(each, _Scored)]
        self._prioritize(frames)
        chances = self._survival(frames)
        return [
            each if isinstance(each, Reject) else self._output(each, chances.get(each.signal_id)) for each in scored
        ]

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Forget the runs that have been idle for so long that they are over.

        Args:
            now_ms: The steady clock, ms since the epoch.

        Returns:
            Nothing: only frames give signals.
        """
        if self._now_ms is None:
            self._active_ms = OrderedDict.fromkeys(self._active_ms, now_ms)
        self._now_ms = now_ms
        while self._active_ms:
            run_id, active_ms = next(iter(self._active_ms.items()))
            if now_ms - active_ms < 1000 * self.settings.idle_timeout_s:
                break
            del self._active_ms[run_id]
            self._seen.pop(run_id, None)
            for topic in TELEMETRY:
                self._deviations.forget(run_id, topic.name)
        return ()

    def open_offsets(self) -> Mapping[str, int]:
        """Return nothing: no record is needed once it was fed."""
        return {}

    def forget(self, output: Output) -> None:
        """Let a frame whose signal was too large give it again: it is no repeat."""
        record: Any = output.record
        self._seen.get(record.run_id, {}).pop(output.identity, None)

    def _read(self, incoming: Incoming) -> _Scored | None:
        """Validate a frame; return None for one that was seen before."""
        frame: Frame | LayerFrame = incoming.record
        self._check(incoming, frame)
        content = read(frame)
        name = signal_id(incoming)
        if self._is_repeat(frame.run_id, name):
            return None
        rows = len(content.layer_id)
        return _Scored(incoming, name, content, np.zeros(rows), np.ones(rows, dtype=bool))

    def _prioritize(self, frames: Sequence[_Scored]) -> None:
        """Set the priority of every row, and whether the filter lets it through: errors always."""
        scored = [(each, each.content.scored) for each in frames if len(each.priority)]
        measured = [(each, values) for each, values in scored if values is not None]
        found = self._deviations.update(
            [
                Measured(
                    each.source.record.run_id,
                    each.source.topic,
                    each.content.layer_id,
                    values,
                    each.source.record.final,
                )
                for each, values in measured
            ]
        )
        for (each, _), priority in zip(measured, found, strict=True):
            each.priority = priority
        for each in frames:
            if each.content.errors.any():
                each.priority[each.content.errors] = HIGHEST
            if self._filters:
                each.passing = self._passing(each.content, each.priority)

    def _check(self, incoming: Incoming, frame: Frame | LayerFrame) -> None:
        """Raise a RecordError for a frame whose time, step or companions cannot be true."""
        ahead = frame.time_ms - incoming.timestamp_ms
        if incoming.timestamp_ms > 0 and ahead > 1000 * self.settings.future_tolerance_s:
            raise RecordError(
                f"event time {frame.time_ms} is {ahead / 1000:.0f} s beyond the record's arrival at "
                f"{incoming.timestamp_ms}; {self.settings.future_tolerance_s:.0f} s are allowed: check the host's clock"
            )
        if frame.step > self.settings.max_step:
            raise RecordError(f"step {frame.step} is beyond the largest expected, {self.settings.max_step}")
        unknown = set(frame.companions) - SOURCES
        if unknown:
            raise RecordError(
                f"companions names {sorted(unknown)}, which no stage reads: the run's watermark would never advance"
            )

    def _passing(self, content: FrameMetrics, priority: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which rows the filter lets through: errors always."""
        passing = priority >= self.settings.minimum_priority
        if self.settings.ignored_layers:
            ignored = [any(fnmatchcase(n, p) for p in self.settings.ignored_layers) for n in content.layer_id]
            passing &= ~np.array(ignored, dtype=bool)  # typed, since a frame may have no layers
        passing |= content.errors
        return passing

    def _survival(self, frames: Sequence[_Scored]) -> dict[str, npt.NDArray[np.float64]]:
        """Return each frame's survival probabilities, by signal id; nothing if all that waits fits the buffer."""
        settings = self.settings
        rows = sum(len(frame.priority) for frame in frames)
        waiting = (self.backlog or 0) * rows / len(frames) if frames else 0.0
        if rows <= settings.batch_signals or rows + waiting <= settings.buffer_signals:
            return {}
        # This batch keeps the share of itself that would make everything waiting fit the buffer.
        budget = max(rows * settings.buffer_signals / (rows + waiting), float(settings.batch_signals))
        priority = np.concatenate([frame.priority for frame in frames])
        exempt = np.concatenate([frame.content.errors | frame.source.record.final for frame in frames])
        chances = survival(priority, exempt, budget)
        ends = np.cumsum([len(frame.priority) for frame in frames])
        return {frame.signal_id: part for frame, part in zip(frames, np.split(chances, ends[:-1]), strict=True)}

    def _output(self, scored: _Scored, chances: npt.NDArray[np.float64] | None) -> Output:
        """Return the signal of a frame, without the rows that the filter or, with `chances`, the draw drops."""
        frame: Frame | LayerFrame = scored.source.record
        content, priority, kept = scored.content, scored.priority, scored.passing
        rows = len(priority)
        layers, values = content.layer_id, content.values
        filtered = rows - int(np.count_nonzero(kept))
        if chances is None:
            chances = np.ones(rows)
        else:
            kept = kept & (draws(scored.signal_id, rows) < chances)
        dropped = rows - int(np.count_nonzero(kept))
        if dropped:
            layers, values, stay = _drop(content, kept)
            chances, priority = chances[stay], priority[stay]
        self.counts["filtered"] += filtered
        self.counts["shed"] += dropped - filtered
        self.counts["processed"] += rows - dropped
        # The frame was checked when it was decoded, and its values when its metrics were read.
        record = HealthSignals.of_checked(
            run_id=frame.run_id,
            signal_id=scored.signal_id,
            source=scored.source.topic,
            step=frame.step,
            epoch=frame.epoch,
            time_ms=frame.time_ms,
            companions=frame.companions,
            final=frame.final,
            layer_id=layers,
            columns=Columns.of_distinct(content.names, values) if rows else NO_METRICS,
            sampling=Columns.of_distinct(SAMPLING, [priority, chances]) if rows else NO_SAMPLING,
            shed=dropped - filtered,
            filtered=filtered,
            model_metrics=content.model_metrics,
        )
        return Output(SIGNALS, record, scored.signal_id, scored.source)

    def _is_repeat(self, run_id: str, name: str) -> bool:
        """Return whether a signal was seen before, and remember it."""
        seen = self._seen.pop(run_id, {})
        self._seen[run_id] = seen
        self._active_ms[run_id] = self._now_ms or 0
        self._active_ms.move_to_end(run_id)
        if name in seen:
            return True
        seen[name] = None
        if len(seen) > self.settings.max_remembered:
            del seen[next(iter(seen))]
        if len(self._seen) > self.settings.max_runs:  # the windows stage drops the repeats of a forgotten run
            longest_idle, _ = self._seen.popitem(last=False)
            self._active_ms.pop(longest_idle, None)
        return False


def signal_id(incoming: Incoming) -> str:
    """Return the id of a frame's signal.

    A step has one frame of a source, except that a run's last frame may share its step with the one before. A step may
    have many errors: their content distinguishes them, since a replay does not keep their offsets.
    """
    frame: Frame | LayerFrame = incoming.record
    parts: list[str | int] = [frame.run_id, incoming.topic, frame.step]
    if frame.final:
        parts.append("final")
    if isinstance(frame, ErrorRecoveryEvent):
        parts.append(frame.model_dump_json())
    return identity("signal", *parts)


def _drop(
    content: FrameMetrics, kept: npt.NDArray[np.bool_]
) -> tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the layers and values that stay, and their rows. A frame with state that graphs need keeps every row."""
    if content.measured is not None:
        blanked = content.values.copy()
        blanked[content.measured, ~kept] = np.nan
        return content.layer_id, blanked, np.arange(len(kept))
    return list(compress(content.layer_id, kept)), content.values[:, kept], np.flatnonzero(kept)
