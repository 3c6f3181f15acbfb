"""Each stage's core alone: records in memory go in, records in memory come out, no Kafka and no codec."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tamiyo.evaluation.common.measure import Result, Spent, repeat, spend
from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, STEP_MS, WIDTH, Load, frames, topology
from tamiyo.host.blueprints import names as blueprint_names
from tamiyo.models.checkpoint import CheckpointHeader, CheckpointStore, checksum, save
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, KernelStatus, OutcomeStatus
from tamiyo.schemas.identity import identity, outcome_id
from tamiyo.schemas.learning import CheckpointStatus, Experience, PolicyCheckpoint
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import (
    CATALOGUE,
    CHECKPOINTS,
    DECISIONS,
    GRAPHS,
    OUTCOMES,
    TELEMETRY,
    TOPOLOGY,
    WINDOWS,
    Topic,
)
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tamiyo.streams.stages.registry import STAGES

BATCH = 100  # records fed at once, as the shell's default allows
CHAIN = ("intake", "windows", "graphs", "decisions")


class FixedView:
    """A compacted topic whose records stand from the beginning."""

    def __init__(self, records: Mapping[str, Any] | None = None) -> None:
        self._records = dict(records or {})

    def get(self, key: str) -> Any:
        """Return the record under `key`, or None."""
        return self._records.get(key)

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return all records."""
        return self._records.items()


@dataclass
class Log:
    """What the topics hold: one partition, offsets counted up, in order of arrival."""

    messages: list[Incoming] = field(default_factory=list)
    _offsets: dict[str, int] = field(default_factory=dict)

    def add(self, topic: Topic, record: Record) -> None:
        """Append a record."""
        offset = self._offsets.get(topic.name, 0)
        self._offsets[topic.name] = offset + 1
        time_ms = getattr(record, "time_ms", EPOCH_MS)
        self.messages.append(Incoming(topic.name, 0, offset, time_ms, record))


def telemetry(load: Load) -> Log:
    """Return the telemetry of all runs, taking turns step by step as they would on a broker."""
    log = Log()
    topics = {topic.record: topic for topic in TELEMETRY}
    for together in zip(*(frames(load, run) for run in range(load.runs)), strict=True):
        for frame in together:
            log.add(topics[type(frame)], frame)
    return log


def feed_all(stage: Stage, messages: Sequence[Incoming]) -> list[Output]:
    """Feed a stage everything in batches; return its outputs. Raises RuntimeError if it rejected any."""
    outputs: list[Output] = []
    for start in range(0, len(messages), BATCH):
        for each in stage.feed(messages[start : start + BATCH]):
            if isinstance(each, Reject):
                raise RuntimeError(f"{stage.name} rejected what it should take: {each.reason}")
            outputs.append(each)
    return outputs


class Bench:
    """Stages for partition 0 with their default settings, and the compacted topics as they find them."""

    def __init__(self, load: Load, store: str) -> None:
        """Put version 0 of the policy into `store`, an fsspec URL, and announce it."""
        self._store = store
        self._views = {topic.name: FixedView() for topic in CATALOGUE if topic.cleanup == "compact"}
        self._views[TOPOLOGY.name] = FixedView({run_id: topology(run_id, load.layers) for run_id in load.run_ids})
        announced = release(store)
        self._views[CHECKPOINTS.name] = FixedView({announced.name: announced})

    def view(self, topic: Topic) -> FixedView:
        """Return a compacted topic as the stages find it."""
        return self._views[topic.name]

    def stage(self, name: str, views: Mapping[str, Any] | None = None) -> Stage:
        """Make a stage that has seen nothing yet, over `views` in the place of the fixed ones."""
        places = {
            "decisions": {"checkpoint_url": f"{self._store}/checkpoints"},
            "kernels": {"store_url": f"{self._store}/kernels"},
        }
        settings: Any = STAGES[name].settings
        make: Any = STAGES[name].load()
        stage: Stage = make(0, settings(**places.get(name, {})), views or self._views)
        return stage


def release(store: str) -> PolicyCheckpoint:
    """Write version 0 of the policy below `store` and return its announcement."""
    chosen = policy()
    data = save(chosen, None, CheckpointHeader.of(chosen, version=0))
    checkpoints = CheckpointStore(f"{store}/checkpoints")
    return PolicyCheckpoint(
        name="tamiyo",
        version=0,
        time_ms=EPOCH_MS,
        status=CheckpointStatus.RELEASED,
        file=checkpoints.write(0, data),
        checksum=checksum(data),
        size_bytes=len(data),
        feature_version=FEATURE_VERSION,
        blueprints=list(chosen.config.blueprints),
        offsets={},
    )


def policy() -> TamiyoPolicy:
    """Return the untrained policy over the whole catalogue of blueprints: version 0."""
    return TamiyoPolicy(PolicyConfig(blueprints=blueprint_names())).eval()


def outcome(decision: AdaptationDecision) -> AdaptationOutcome:
    """Return what a host says that executed a decision."""
    return AdaptationOutcome(
        run_id=decision.run_id,
        outcome_id=outcome_id(decision.decision_id),
        decision_id=decision.decision_id,
        step=decision.step + 1,
        time_ms=decision.time_ms + STEP_MS,
        type=decision.type,
        layer_id=decision.layer_id,
        blueprint=decision.blueprint,
        kernel_id=decision.kernel_id,
        status=OutcomeStatus.EXECUTED,
        before={"loss": 1.0, "latency_ms": 0.4, "parameters": 100.0},
        after={"loss": 1.0, "latency_ms": 0.5, "parameters": 200.0},
    )


def stage_inputs(load: Load, bench: Bench) -> dict[str, Log]:
    """Run the load through the stages once; return what each is fed. Kernels are apart: see `kernels`."""
    inputs = {"intake": telemetry(load)}
    for name, following in pairwise(CHAIN):
        log = inputs[following] = Log()
        for output in feed_all(bench.stage(name), inputs[name].messages):
            log.add(output.topic, output.record)
    inputs["rewards"] = _judged(inputs, bench)
    return inputs


def _judged(inputs: Mapping[str, Log], bench: Bench) -> Log:
    """Windows, graphs, decisions and outcomes as they come to the rewards stage."""
    decisions = {
        output.record.graph_id: output.record  # type: ignore[attr-defined]
        for output in feed_all(bench.stage("decisions"), inputs["decisions"].messages)
    }
    log = Log()
    graphs = {each.record.window_id: each.record for each in inputs["decisions"].messages}
    for window in (each.record for each in inputs["graphs"].messages):
        graph = graphs[window.window_id]
        decision: Any = decisions[graph.graph_id]
        log.add(WINDOWS, window)
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decision)
        if decision.type != DecisionType.NO_OP:
            log.add(OUTCOMES, outcome(decision))
    return log


def experiences(inputs: Mapping[str, Log], bench: Bench) -> list[Experience]:
    """Return what the rewards stage hands to the learner."""
    outputs = feed_all(bench.stage("rewards"), inputs["rewards"].messages)
    return [output.record for output in outputs if isinstance(output.record, Experience)]


def stages(load: Load, bench: Bench, inputs: Mapping[str, Log], *, repeats: int) -> list[Result]:
    """Measure every stage's `feed` over the whole load, in layer-signals a second and core."""
    results = []
    for name, log in inputs.items():
        counts: list[int] = []

        def once(name: str = name, log: Log = log, counts: list[int] = counts) -> Spent:
            stage = bench.stage(name)
            stage.feed(log.messages[:1])  # what a stage reads once (a checkpoint) is not the load's to pay
            outputs: list[Output] = []
            spent = spend(lambda: outputs.extend(feed_all(stage, log.messages[1:])))
            counts.append(len(outputs))
            return spent

        spent = repeat(once, repeats=repeats)
        extra = {
            "inputs": len(log.messages),
            "outputs": counts[-1],
            "inputs_per_second": round(len(log.messages) / min(each.cpu_s for each in spent)),
            "layers": load.layers,
        }
        values = tuple(load.layer_signals / each.cpu_s for each in spent)
        results.append(Result("stage alone", name, "signals/s/core", values, "higher", extra))
    return results


def kernels(inputs: Mapping[str, Log], bench: Bench, *, count: int, repeats: int) -> list[Result]:
    """Measure the kernels stage: one decision after another asks for a kernel, the blueprints taking turns."""
    decision: Any = next(each.record for each in inputs["rewards"].messages if each.topic == DECISIONS.name)
    offered = [offer.name for offer in topology(decision.run_id, 1).layers[0].blueprints]
    values = []
    for number in range(repeats + 1):
        log = Log()
        for place in range(count):
            told = {
                "decision_id": identity("bench", number, place),
                "type": DecisionType.LOAD_KERNEL,
                "layer_id": decision.layers[place % len(decision.layers)],
                "blueprint": offered[place % len(offered)],
            }
            log.add(DECISIONS, decision.model_copy(update=told))
        stage = bench.stage("kernels")
        outputs: list[Any] = []
        started = time.perf_counter()
        outputs.extend(feed_all(stage, log.messages))
        wall = time.perf_counter() - started
        refused = [each.record.reason for each in outputs if each.record.status != KernelStatus.COMPILED]
        if len(outputs) != count or refused:
            raise RuntimeError(f"{count} kernels were asked for, {len(outputs) - len(refused)} came: {refused[:1]}")
        values.append(1000 * wall / count)
    extra = {"kernels": count, "blueprints": offered, "layer": f"linear {WIDTH} to {WIDTH}"}
    return [Result("stage alone", "kernels, wall time of one", "ms", tuple(values[1:]), "lower", extra)]
