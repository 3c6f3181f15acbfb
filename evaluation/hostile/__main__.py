"""Hostile input by the million: `python -m tamiyo.evaluation.hostile --records 1000000 --seed 0 --report FILE`.

Every record goes through the decoder of a topic and, if accepted, to all readers of the topic: the stages, the views of
compacted topics, the learner, and `tamiyo tail`. Outputs are encoded as for Kafka. A record may be refused, rejected or
processed; any other exception is a failure, reported with the bytes.
"""

import io
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import fastavro
import torch
import typer
from rich.console import Console
from rich.progress import Progress

from tamiyo.evaluation.common.command_line import run_program
from tamiyo.evaluation.common.policies import untrained_policy
from tamiyo.evaluation.common.report import ReportFile, prepare_report, write_report
from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, Load, topology
from tamiyo.evaluation.common.stage_bench import Bench, experiences, outcome, stage_inputs
from tamiyo.evaluation.hostile.records import extreme_values, hostile_values, mutated, random_bytes
from tamiyo.models.learning.hyperparameters import LearningSettings
from tamiyo.models.learning.learner import Learner
from tamiyo.schemas.adaptation import ControlCommand, DecisionType
from tamiyo.schemas.codec import decode, encode, header, parsed_schema
from tamiyo.schemas.errors import SchemaError
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import CacheHitRates, ErrorRecoveryEvent
from tamiyo.schemas.topics import (
    BY_NAME,
    CATALOGUE,
    CHECKPOINTS,
    CONTROL,
    EXPERIENCE,
    KERNELS,
    REWARDS,
    TOPOLOGY,
    Topic,
)
from tamiyo.streams.admin.topic_table import TopicTable
from tamiyo.streams.admin.topic_tail import TopicLine, to_json_values
from tamiyo.streams.process.logs import only_critical
from tamiyo.streams.runtime.views import TopicView
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tamiyo.streams.stages.registry import STAGES

KINDS = ("random", "mutated", "values", "extreme", "good")
TICK_EVERY = 500  # records
MAX_FAILURES = 20  # in the report


@dataclass
class Verdict:
    """The results of a run."""

    records: int
    seed: int
    kinds: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    """By the decoder: dead letters, or ignored by a view."""
    accepted: int = 0
    rejected: int = 0
    """Accepted by the decoder, rejected by a stage: dead letters or late records."""
    outputs: Counter[str] = field(default_factory=Counter)
    """Outputs of the stages by topic."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    largest_record_bytes: int = 0
    memory_begin_mib: float = 0.0
    memory_peak_mib: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able values, under the report's names."""
        names = {"rejected": "set_aside", "outputs": "said"}
        return {names.get(name, name): value for name, value in vars(self).items()}


def corpus(bench: Bench, load: Load) -> dict[str, list[Record]]:
    """Return valid records of every topic, made by the stages from simulated runs."""
    inputs = stage_inputs(load, bench)
    found: dict[str, list[Record]] = {topic.name: [] for topic in CATALOGUE}
    for log in inputs.values():
        for each in log.messages:
            found[each.topic].append(each.record)
    decision: Any = found["tamiyo.adaptation.decisions"][-1]
    layer = topology(decision.run_id, 1).layers[0]
    load_kernel = {"type": DecisionType.LOAD_KERNEL, "layer_id": layer.layer_id, "blueprint": layer.blueprints[0].name}
    adapted = decision.model_copy(update={"decision_id": "d" * 32, **load_kernel})
    found["tamiyo.adaptation.decisions"].append(adapted)
    found["tamiyo.adaptation.outcomes"].append(outcome(adapted))
    rewarded = [each.record for each in inputs["rewards"].messages]
    for stage, records in ((bench.stage("kernels"), [adapted]), (bench.stage("rewards"), rewarded)):
        for offset, record in enumerate(records):
            topic = next(each for each in stage.inputs if isinstance(record, each.record))
            for output in stage.feed([Incoming(topic.name, 0, offset, EPOCH_MS, record)]):
                if isinstance(output, Output) and output.topic in (KERNELS, REWARDS):
                    found[output.topic.name].append(output.record)
    found[EXPERIENCE.name] += experiences(inputs, bench)
    found[TOPOLOGY.name].append(topology(load.run_ids[0], load.layers))
    found[CHECKPOINTS.name] += [record for _, record in bench.view(CHECKPOINTS).items()]
    found[CONTROL.name].append(
        ControlCommand(run_id="*", time_ms=EPOCH_MS, protected_layers=["layers.0"], issued_by="me")
    )
    frame: Any = found["telemetry.model.performance_metrics"][0]
    when = {"run_id": frame.run_id, "step": frame.step, "time_ms": frame.time_ms}
    found["telemetry.cache.hit_rates"].append(
        CacheHitRates(**when, hits=3, misses=1, evictions=0, hit_rate=0.75, entries=4, capacity=8)
    )
    found["telemetry.error_recovery.events"].append(
        ErrorRecoveryEvent(
            **when, layer_id="layers.0", seed_id=0, error_type="non_finite", strategy="retry", success=True,
            recovery_time_ms=4.0,
        )
    )  # fmt: skip
    empty = [name for name, records in found.items() if not records]
    if empty:
        raise RuntimeError(f"the stages made no records of {empty} to mutate")
    return {name: records[:60] + records[-60:] for name, records in found.items()}


class Readers:
    """All readers of topics, for one partition."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.views: dict[str, TopicView[Any]] = {
            topic.name: TopicView(topic) for topic in CATALOGUE if topic.cleanup == "compact"
        }
        for name, view in self.views.items():
            for key, record in bench.view(BY_NAME[name]).items():
                view.apply(key.encode(), encode(record))
        self.stages: dict[str, Stage] = {name: bench.stage(name, self.views) for name in STAGES}
        self.learner = Learner(untrained_policy(), LearningSettings(), version=0)

    def take(self, topic: Topic, incoming: Incoming, verdict: Verdict) -> None:
        """Pass an accepted record to all readers of its topic."""
        record: Any = incoming.record
        line = TopicLine(topic.name, 0, incoming.offset, incoming.timestamp_ms, {}, to_json_values(record))
        TopicTable(topic.name, 80).row(line)
        line.json()
        if topic.name in self.views:
            self.views[topic.name].apply(incoming.key, incoming.raw)
        if topic is EXPERIENCE:
            self.learner.take(record)
        for stage in self.stages.values():
            if topic in stage.inputs:
                self._count(stage, stage.feed([incoming]), verdict)

    def tick(self, now_ms: int, verdict: Verdict) -> None:
        """Advance the stages' clock."""
        for stage in self.stages.values():
            self._count(stage, stage.tick(now_ms), verdict)

    def _count(self, stage: Stage, outputs: Any, verdict: Verdict) -> None:
        for each in outputs:
            if isinstance(each, Reject):
                verdict.rejected += 1
            else:
                verdict.outputs[each.topic.name] += 1
                decode(encode(each.record), each.topic.record)
        if not set(stage.open_offsets()) <= {topic.name for topic in stage.inputs}:
            raise AssertionError(f"{stage.name} reports open offsets of topics that it does not read")


def message(
    rng: random.Random, topic: Topic, good: dict[str, list[Record]], raw: dict[str, list[bytes]]
) -> tuple[str, bytes]:
    """Return the kind of a hostile message for `topic`, and its bytes."""
    kind = rng.choices(KINDS, (1, 3, 3, 2, 1))[0]
    if kind == "random":
        return kind, random_bytes(rng, topic.record)
    if kind == "mutated":
        return kind, mutated(rng, rng.choice(raw[topic.name]), rng.choice(raw[rng.choice(CATALOGUE).name]))
    if kind == "good":  # so that hostile messages meet stages with state
        return kind, rng.choice(raw[topic.name])
    values = rng.choice(good[topic.name]).model_dump()
    values = extreme_values(rng, values) if kind == "extreme" else hostile_values(rng, values)
    return kind, _written(topic.record, values)


def _written(record: type[Record], values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    buffer.write(header(record))
    try:
        fastavro.schemaless_writer(buffer, parsed_schema(record), values)
    except Exception:
        # A value of another type than the schema's: the message ends there.
        return buffer.getvalue()
    return buffer.getvalue()


def run(records: int, seed: int, *, on_progress: Any = lambda done: None) -> Verdict:
    """Send `records` hostile messages; equal seeds send equal messages."""
    rng = random.Random(seed)
    verdict = Verdict(records, seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tamiyo-hostile-") as folder:
        load = Load(runs=2, layers=4, frames=60)
        bench = Bench(load, f"file://{folder}")
        good = corpus(bench, load)
        raw = {name: [encode(record) for record in listed] for name, listed in good.items()}
        readers = Readers(bench)
        verdict.memory_begin_mib = _memory_mib()
        for number in range(records):
            topic = rng.choice(CATALOGUE)
            kind, data = message(rng, topic, good, raw)
            verdict.kinds[kind] += 1
            verdict.largest_record_bytes = max(verdict.largest_record_bytes, len(data))
            now_ms = EPOCH_MS + 10 * number
            try:
                record: Any = decode(data, topic.record)
            except SchemaError:
                verdict.refused += 1
            except Exception as error:
                _fail(verdict, topic, data, error)
            else:
                verdict.accepted += 1
                key = str(getattr(record, "run_id", "") or record.name).encode()
                try:
                    readers.take(topic, Incoming(topic.name, 0, number, now_ms, record, data, key), verdict)
                except Exception as error:
                    _fail(verdict, topic, data, error)
                    readers = Readers(bench)
            if number % TICK_EVERY == 0:
                try:
                    readers.tick(now_ms, verdict)
                except Exception as error:
                    _fail(verdict, topic, b"", error)
                    readers = Readers(bench)
                on_progress(number)
    verdict.memory_peak_mib = _memory_mib()
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _fail(verdict: Verdict, topic: Topic, data: bytes, error: Exception) -> None:
    verdict.failed += 1
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    if len(verdict.failures) < MAX_FAILURES and where not in {each["where"] for each in verdict.failures}:
        described = {"topic": topic.name, "error": f"{type(error).__name__}: {error}"[:500], "where": where}
        verdict.failures.append(
            {**described, "trace": traceback.format_exception(error)[-4:], "bytes": data[:4000].hex()}
        )


def _memory_mib() -> float:
    """Return the peak memory of this process, MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def main(
    records: Annotated[int, typer.Option(min=1, help="Number of hostile records")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds send equal records")] = 0,
    report: ReportFile = None,
) -> None:
    """Send hostile records through every decoder and stage; exit 1 if any of them fails.

    Examples: `python -m tamiyo.evaluation.hostile` ·
    `python -m tamiyo.evaluation.hostile --records 1000000 --seed 0 --report evaluation/results/hostile.json`
    """
    prepare_report(report)
    console = Console()
    torch.set_num_threads(1)
    only_critical()
    with Progress(disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("hostile records", total=records)
        verdict = run(records, seed, on_progress=lambda done: progress.update(task, completed=done))
    console.print_json(data=verdict.to_dict())
    write_report(report, verdict.to_dict(), console)
    if verdict.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    run_program(main)
