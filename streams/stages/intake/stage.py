"""Intake: five telemetry topics become one log of health signals, validated, scored, filtered and, if need be, shed.

Every frame gives one `HealthSignals`, in order of arrival: the order among layer-signals that priority decides is which
of them survive, never which frame goes first, since the watermark downstream rests on each source's own order.

Nothing is held back, so nothing is asked for again after a restart. The rolling deviation then begins anew: it
decides what is dropped under overload or by the filter, not what any published signal measured.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import compress
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import HealthSignals
from tamiyo.schemas.errors import RecordError
from tamiyo.schemas.identity import identity
from tamiyo.schemas.record import MAX_LAYERS
from tamiyo.schemas.telemetry import ErrorRecoveryEvent, Frame
from tamiyo.schemas.topics import SIGNALS, TELEMETRY, Topic
from tamiyo.streams.settings import IntakeSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.intake.anomaly import HIGHEST, RollingDeviation
from tamiyo.streams.stages.intake.frame_metrics import FrameMetrics, read
from tamiyo.streams.stages.intake.shedding import draws, survival

SOURCES = frozenset(topic.name for topic in TELEMETRY)


@dataclass(slots=True)
class _Scored:
    source: Incoming
    signal_id: str
    reading: FrameMetrics
    priority: npt.NDArray[np.float64]
    wanted: npt.NDArray[np.bool_]
    """What the filter lets through."""


class IntakeStage(Stage):
    """One partition of the five telemetry topics."""

    name: ClassVar[str] = "intake"
    inputs: ClassVar[tuple[Topic, ...]] = TELEMETRY
    outputs: ClassVar[tuple[Topic, ...]] = (SIGNALS,)
    views: ClassVar[tuple[Topic, ...]] = ()

    def __init__(self, partition: int, settings: IntakeSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        """Records known to wait behind the next batch; set from outside, it counts towards the buffer."""
        self.counts: Counter[str] = Counter()
        """received, rejected and repeated frames; layer-signals processed, filtered and shed."""
        # The signal ids of each run, oldest first; runs and deviations stand in the order they were last heard of.
        self._seen: OrderedDict[str, dict[str, None]] = OrderedDict()
        # By run and source: each source's frames come in order, so the order among sources does not show.
        self._deviations: OrderedDict[tuple[str, str], RollingDeviation] = OrderedDict()
        self._cells = 0
        self._heard_ms: OrderedDict[str, int] = OrderedDict()
        """By run, the time of the tick before its newest frame; the longest silent first."""
        self._now_ms: int | None = None

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which frames were published already."""
        for one in said:
            self._repeated(one.record.run_id, one.identity)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Return one signal a frame, or its rejection; a frame seen before gives nothing."""
        scored: list[_Scored | Reject] = []
        for incoming in batch:
            self.counts["received"] += 1
            try:
                one = self._score(incoming)
            except RecordError as error:
                self.counts["rejected"] += 1
                scored.append(Reject(incoming, str(error)))
                continue
            if one is None:
                self.counts["repeated"] += 1
            else:
                scored.append(one)
        kept = self._survival([one for one in scored if isinstance(one, _Scored)])
        return [one if isinstance(one, Reject) else self._publish(one, kept.get(one.signal_id)) for one in scored]

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Return nothing: only records make signals. Let go of runs that have been silent for long: they are over."""
        if self._now_ms is None:
            self._heard_ms = OrderedDict.fromkeys(self._heard_ms, now_ms)
        self._now_ms = now_ms
        while self._heard_ms:
            run_id, heard_ms = next(iter(self._heard_ms.items()))
            if now_ms - heard_ms < 1000 * self.settings.idle_timeout_s:
                break
            del self._heard_ms[run_id]
            self._seen.pop(run_id, None)
            for topic in TELEMETRY:
                self._let_go(run_id, topic.name)
        return ()

    def _let_go(self, run_id: str, topic: str) -> None:
        """Forget what was ordinary of a run that is over."""
        forgotten = self._deviations.pop((run_id, topic), None)
        self._cells -= forgotten.cells if forgotten is not None else 0

    def open_offsets(self) -> Mapping[str, int]:
        """Return nothing: every record is answered when it is fed."""
        return {}

    def _score(self, incoming: Incoming) -> _Scored | None:
        frame: Frame = incoming.record
        self._check(incoming, frame)
        reading = read(frame)
        name = signal_id(incoming)
        if self._repeated(frame.run_id, name):
            return None
        priority = np.zeros(len(reading.layer_id))
        if reading.scored is not None and len(priority):
            priority = self._deviation((frame.run_id, incoming.topic), reading)
        priority[reading.errors] = HIGHEST
        if frame.final:
            self._let_go(frame.run_id, incoming.topic)
        return _Scored(incoming, name, reading, priority, self._wanted(reading, priority))

    def _check(self, incoming: Incoming, frame: Frame) -> None:
        ahead = frame.time_ms - incoming.timestamp_ms
        if incoming.timestamp_ms > 0 and ahead > 1000 * self.settings.future_tolerance_s:
            raise RecordError(
                f"event time {frame.time_ms} is {ahead / 1000:.0f} s beyond the record's arrival at "
                f"{incoming.timestamp_ms}; {self.settings.future_tolerance_s:.0f} s are allowed: check the host's clock"
            )
        if frame.step > self.settings.max_step:
            raise RecordError(f"step {frame.step} is beyond the largest expected, {self.settings.max_step}")
        strange = set(frame.companions) - SOURCES
        if strange:
            raise RecordError(
                f"companions names {sorted(strange)}, which no stage reads; the watermark would wait for it"
            )

    def _wanted(self, reading: FrameMetrics, priority: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        wanted = priority >= self.settings.minimum_priority
        if self.settings.ignored_layers:
            wanted &= [not any(fnmatchcase(n, p) for p in self.settings.ignored_layers) for n in reading.layer_id]
        wanted |= reading.errors
        return wanted

    def _survival(self, frames: Sequence[_Scored]) -> dict[str, npt.NDArray[np.float64]]:
        """Return each frame's survival probabilities, by signal id; nothing at all where everything fits."""
        settings = self.settings
        rows = sum(len(one.priority) for one in frames)
        waiting = (self.backlog or 0) * rows / len(frames) if frames else 0.0
        if rows <= settings.batch_signals or rows + waiting <= settings.buffer_signals:
            return {}
        # This batch keeps the share of itself that would make everything waiting fit the buffer.
        budget = max(rows * settings.buffer_signals / (rows + waiting), float(settings.batch_signals))
        priority = np.concatenate([one.priority for one in frames])
        exempt = np.concatenate([one.reading.errors | one.source.record.final for one in frames])
        chances = survival(priority, exempt, budget)
        ends = np.cumsum([len(one.priority) for one in frames])
        return {one.signal_id: part for one, part in zip(frames, np.split(chances, ends[:-1]), strict=True)}

    def _publish(self, one: _Scored, chances: npt.NDArray[np.float64] | None) -> Output:
        frame: Frame = one.source.record
        reading, priority = one.reading, one.priority
        if chances is None:
            chances, kept = np.ones(len(priority)), one.wanted
        else:
            kept = one.wanted & (draws(one.signal_id, len(priority)) < chances)
        layers, metrics = reading.layer_id, reading.metrics
        dropped = len(priority) - int(kept.sum())
        filtered = len(priority) - int(one.wanted.sum())
        if dropped:
            layers, metrics, rows = _drop(reading, kept)
            chances, priority = chances[rows], priority[rows]
        self.counts["filtered"] += filtered
        self.counts["shed"] += dropped - filtered
        self.counts["processed"] += len(kept) - dropped
        record = HealthSignals(
            run_id=frame.run_id,
            signal_id=one.signal_id,
            source=one.source.topic,
            step=frame.step,
            epoch=frame.epoch,
            time_ms=frame.time_ms,
            companions=frame.companions,
            final=frame.final,
            layer_id=layers,
            metrics={name: list(column) for name, column in metrics.items()},
            priority=priority.tolist(),
            survival=chances.tolist(),
            shed=dropped - filtered,
            filtered=filtered,
            model_metrics=reading.model_metrics,
        )
        return Output(SIGNALS, record, one.signal_id, one.source)

    def _deviation(self, key: tuple[str, str], reading: FrameMetrics) -> npt.NDArray[np.float64]:
        assert reading.scored is not None
        settings = self.settings
        tracked = self._deviations.pop(key, None)
        if tracked is None or tracked.layers > MAX_LAYERS:  # layers that change with every frame are no network's
            self._cells -= tracked.cells if tracked else 0
            tracked = RollingDeviation(
                reading.scored.shape[1], frames=settings.deviation_frames, minimum=settings.deviation_minimum
            )
        before = tracked.cells
        deviation = tracked.update(reading.layer_id, reading.scored)
        self._deviations[key] = tracked
        self._cells += tracked.cells - before
        while self._cells > settings.deviation_cells and len(self._deviations) > 1:
            _, longest_silent = self._deviations.popitem(last=False)
            self._cells -= longest_silent.cells
        return deviation

    def _repeated(self, run_id: str, name: str) -> bool:
        """Return whether a signal was seen before, and remember it."""
        seen = self._seen.pop(run_id, {})
        self._seen[run_id] = seen
        self._heard_ms[run_id] = self._now_ms or 0
        self._heard_ms.move_to_end(run_id)
        if name in seen:
            return True
        seen[name] = None
        if len(seen) > self.settings.max_remembered:
            del seen[next(iter(seen))]
        if len(self._seen) > self.settings.max_runs:  # a repeat of a forgotten run is caught by its window
            longest_silent, _ = self._seen.popitem(last=False)
            self._heard_ms.pop(longest_silent, None)
        return False


def signal_id(incoming: Incoming) -> str:
    """Return the name of a frame's signal.

    A step has one frame of a source, and a run's last may share its step with one before. Errors are many a step, so
    they are told apart by what they say: where they lie on the topic is not the same in a replay.
    """
    frame: Frame = incoming.record
    parts: list[str | int] = [frame.run_id, incoming.topic, frame.step]
    if frame.final:
        parts.append("final")
    if isinstance(frame, ErrorRecoveryEvent):
        parts.append(frame.model_dump_json())
    return identity("signal", *parts)


def _drop(
    reading: FrameMetrics, kept: npt.NDArray[np.bool_]
) -> tuple[list[str], dict[str, Sequence[float | None]], npt.NDArray[np.intp]]:
    """Return the layers and metrics left, and which rows they are; state that graphs need stays in any case."""
    if reading.kept:
        blanked: dict[str, Sequence[float | None]] = {
            name: column
            if name in reading.kept
            else [value if keep else None for value, keep in zip(column, kept.tolist(), strict=True)]
            for name, column in reading.metrics.items()
        }
        return reading.layer_id, blanked, np.arange(len(kept))
    metrics: dict[str, Sequence[float | None]] = {
        name: list(compress(column, kept)) for name, column in reading.metrics.items()
    }
    return list(compress(reading.layer_id, kept)), metrics, np.flatnonzero(kept)
