"""Each stage on its own: records in memory in, records in memory out, without Kafka and codec."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tamiyo.evaluation.common.measure import Result, Spent, repeat, spend
from tamiyo.evaluation.common.policies import release
from tamiyo.evaluation.common.simulated_runs import EPOCH_MS, STEP_MS, TOPICS, WIDTH, Load, frames, topology
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType, KernelStatus, OutcomeStatus
from tamiyo.schemas.identity import identity, outcome_id
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import (
    CATALOGUE,
    CHECKPOINTS,
    DECISIONS,
    GRAPHS,
    OUTCOMES,
    TOPOLOGY,
    WINDOWS,
    Topic,
)
from tamiyo.streams.stages.base import Incoming, Output, Reject, Stage
from tamiyo.streams.stages.registry import STAGES

BATCH = 100  # records fed at once, the default limit of a worker
CHAIN = ("intake", "windows", "graphs", "decisions")


class FixedView:
    """A compacted topic with fixed records."""

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
    """Topics of one partition each, their messages in order of arrival."""

    messages: list[Incoming] = field(default_factory=list)
    _offsets: dict[str, int] = field(default_factory=dict)

    def add(self, topic: Topic, record: Record) -> None:
        """Append a record."""
        offset = self._offsets.get(topic.name, 0)
        self._offsets[topic.name] = offset + 1
        time_ms = getattr(record, "time_ms", EPOCH_MS)
        self.messages.append(Incoming(topic.name, 0, offset, time_ms, record))


def telemetry(load: Load) -> Log:
    """Return the telemetry of all runs, interleaved step by step as on a broker."""
    log = Log()
    for together in zip(*(frames(load, run) for run in range(load.runs)), strict=True):
        for frame in together:
            log.add(TOPICS[type(frame)], frame)
    return log


def feed_all(stage: Stage, messages: Sequence[Incoming]) -> list[Output]:
    """Feed messages to a stage in batches and return its outputs; raise RuntimeError if it rejects one."""
    outputs: list[Output] = []
    for start in range(0, len(messages), BATCH):
        for each in stage.feed(messages[start : start + BATCH]):
            if isinstance(each, Reject):
                raise RuntimeError(f"{stage.name} rejected a valid record: {each.reason}")
            outputs.append(each)
    return outputs


class Bench:
    """Stages for partition 0 with their default settings, and the compacted topics that they read."""

    def __init__(self, load: Load, store: str) -> None:
        """Put version 0 of the policy into `store`, an fsspec URL, and announce it."""
        self._store = store
        self._views = {topic.name: FixedView() for topic in CATALOGUE if topic.cleanup == "compact"}
        self._views[TOPOLOGY.name] = FixedView({run_id: topology(run_id, load.layers) for run_id in load.run_ids})
        announced = release(store)
        self._views[CHECKPOINTS.name] = FixedView({announced.name: announced})

    def view(self, topic: Topic) -> FixedView:
        """Return a compacted topic as the stages see it."""
        return self._views[topic.name]

    def stage(self, name: str, views: Mapping[str, Any] | None = None) -> Stage:
        """Create a stage; `views` replace the fixed compacted topics."""
        places = {
            "decisions": {"checkpoint_url": f"{self._store}/checkpoints"},
            "kernels": {"store_url": f"{self._store}/kernels"},
        }
        settings: Any = STAGES[name].settings
        make: Any = STAGES[name].load()
        stage: Stage = make(0, settings(**places.get(name, {})), views or self._views)
        return stage


def outcome(decision: AdaptationDecision) -> AdaptationOutcome:
    """Return the outcome of an executed decision, as a host reports it."""
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
    """Run the load through the stages once and return each one's inputs; those of kernels are made by `kernels`."""
    inputs = {"intake": telemetry(load)}
    for name, following in pairwise(CHAIN):
        log = inputs[following] = Log()
        for output in feed_all(bench.stage(name), inputs[name].messages):
            log.add(output.topic, output.record)
    inputs["rewards"] = _rewards_inputs(inputs, bench)
    return inputs


def _rewards_inputs(inputs: Mapping[str, Log], bench: Bench) -> Log:
    """Return windows, graphs, decisions and outcomes in the order in which the rewards stage reads them."""
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
    """Return the experiences that the rewards stage publishes."""
    outputs = feed_all(bench.stage("rewards"), inputs["rewards"].messages)
    return [output.record for output in outputs if isinstance(output.record, Experience)]


def stages(load: Load, bench: Bench, inputs: Mapping[str, Log], *, repeats: int) -> list[Result]:
    """Measure every stage's `feed` over the whole load, in layer-signals per second and core."""
    results = []
    for name, log in inputs.items():
        counts: list[int] = []

        def once(name: str = name, log: Log = log, counts: list[int] = counts) -> Spent:
            stage = bench.stage(name)
            stage.feed(log.messages[:1])  # what a stage reads only once (a checkpoint) is not measured
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
    """Measure the kernels stage: one decision after another requests a kernel, cycling through the blueprints."""
    decision: Any = next(each.record for each in inputs["rewards"].messages if each.topic == DECISIONS.name)
    offered = [offer.name for offer in topology(decision.run_id, 1).layers[0].blueprints]
    values = []
    for number in range(repeats + 1):
        log = Log()
        for place in range(count):
            request = {
                "decision_id": identity("bench", number, place),
                "type": DecisionType.LOAD_KERNEL,
                "layer_id": decision.layers[place % len(decision.layers)],
                "blueprint": offered[place % len(offered)],
            }
            log.add(DECISIONS, decision.model_copy(update=request))
        stage = bench.stage("kernels")
        outputs: list[Any] = []
        started = time.perf_counter()
        outputs.extend(feed_all(stage, log.messages))
        wall = time.perf_counter() - started
        refused = [each.record.reason for each in outputs if each.record.status != KernelStatus.COMPILED]
        if len(outputs) != count or refused:
            raise RuntimeError(f"expected {count} kernels, got {len(outputs) - len(refused)}; refused: {refused[:1]}")
        values.append(1000 * wall / count)
    extra = {"kernels": count, "blueprints": offered, "layer": f"linear {WIDTH} to {WIDTH}"}
    return [Result("stage alone", "kernels, wall time of one", "ms", tuple(values[1:]), "lower", extra)]
