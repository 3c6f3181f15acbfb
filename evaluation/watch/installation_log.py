"""The log of a simulated installation: what the stages make of simulated runs, copied to as many runs as are wanted."""

from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from tamiyo.evaluation.common.simulated_runs import STEP_MS, Load, topology
from tamiyo.evaluation.common.stage_bench import Bench, Log, feed_all, outcome, stage_inputs
from tamiyo.schemas.adaptation import Action, AdaptationDecision, CompiledKernel, DecisionType, KernelStatus
from tamiyo.schemas.identity import identity, kernel_id
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CATALOGUE, CHECKPOINTS, DECISIONS, GRAPHS, OUTCOMES, WINDOWS

TOPIC_OF = {topic.record: topic.name for topic in CATALOGUE}
IDS = (
    "signal_id", "window_id", "graph_id", "decision_id", "kernel_id", "outcome_id", "analysis_id", "experience_id",
)  # fmt: skip
ADAPT_EVERY = 4  # decisions: heuristics adapt simulated runs seldom, and a page has to show adaptations
BLUEPRINT = "low_rank"
DELAY_MS = 40  # of a stage


@dataclass(frozen=True, slots=True)
class LoggedRecord:
    """One record with its Kafka time."""

    time_ms: int
    topic: str
    key: str
    record: Record


def run_log(layers: int, frames: int) -> list[LoggedRecord]:
    """Return everything about one run, in order of time: telemetry, and what the stages and the host make of it.

    Args:
        layers: Layers of its network.
        frames: Sampled steps.
    """
    load = Load(runs=1, layers=layers, frames=frames, name="watched")
    (run_id,) = load.run_ids
    with TemporaryDirectory(prefix="tamiyo-watch-") as folder:
        bench = Bench(load, f"file://{folder}")
        inputs = stage_inputs(load, bench)
        rewarded = Log()
        found: list[tuple[int, Record]] = [(0, topology(run_id, layers))]
        for delay, name in enumerate(("intake", "windows", "graphs", "decisions")):
            found += [(delay, each.record) for each in inputs[name].messages]
        number = 0
        for each in inputs["rewards"].messages:
            record: Any = each.record
            if each.topic == OUTCOMES.name:
                continue
            if each.topic == DECISIONS.name:
                number += 1
                decision = _adapting(record, number)
                rewarded.add(DECISIONS, decision)
                found.append((4, decision))
                if decision.type == DecisionType.LOAD_KERNEL.value:
                    found.append((5, _compiled(decision)))
                if decision.type != DecisionType.NO_OP.value:
                    handled = outcome(decision)
                    rewarded.add(OUTCOMES, handled)
                    found.append((6, handled))
            else:
                rewarded.add(WINDOWS if each.topic == WINDOWS.name else GRAPHS, record)
        found += [(5, each.record) for each in feed_all(bench.stage("rewards"), rewarded.messages)]
        released = [record for _, record in bench.view(CHECKPOINTS).items()]
    log = [_logged(record, delay, run_id) for delay, record in found]
    log += [LoggedRecord(log[0].time_ms, CHECKPOINTS.name, record.name, record) for record in released]
    return sorted(log, key=lambda each: each.time_ms)


def copies(log: list[LoggedRecord], runs: int) -> Iterator[LoggedRecord]:
    """Yield the log of `runs` runs that train at once, each a copy of `log` under its own ids."""
    for each in log:
        if each.topic == CHECKPOINTS.name:
            yield each
            continue
        for run in range(runs):
            yield LoggedRecord(each.time_ms + run % STEP_MS, each.topic, _name(run), _renamed(each.record, _name(run)))


def _name(run: int) -> str:
    return f"watched-{run:04d}"


def _renamed(record: Record, run_id: str) -> Record:
    values = {name: getattr(record, name, None) for name in IDS}
    ids = {name: identity("watched", run_id, value) for name, value in values.items() if value is not None}
    return record.model_copy(update={"run_id": run_id, **ids})


def _logged(record: Any, delay: int, run_id: str) -> LoggedRecord:
    time_ms = getattr(record, "time_ms", None)
    return LoggedRecord((time_ms or 0) + DELAY_MS * delay, TOPIC_OF[type(record)], run_id, record)


def _adapting(decision: AdaptationDecision, number: int) -> AdaptationDecision:
    """Return a decision, every few of them one that loads a kernel."""
    if number % ADAPT_EVERY or decision.type != DecisionType.NO_OP.value:
        return decision
    place = number // ADAPT_EVERY % len(decision.layers)
    action = Action(type=DecisionType.LOAD_KERNEL.value, layer_id=decision.layers[place], blueprint=BLUEPRINT)
    changes = {
        **action.model_dump(),
        "proposed": action,
        "vetoes": [],
        "kernel_id": kernel_id(decision.decision_id),
        "action_index": 1 + place * len(decision.kinds) + decision.kinds.index(f"load_kernel:{BLUEPRINT}"),
    }
    return decision.model_copy(update=changes)


def _compiled(decision: AdaptationDecision) -> CompiledKernel:
    return CompiledKernel(
        run_id=decision.run_id,
        kernel_id=decision.kernel_id or "",
        decision_id=decision.decision_id,
        layer_id=decision.layer_id or "",
        blueprint=decision.blueprint or "",
        status=KernelStatus.COMPILED,
        size_bytes=4_000,
        parameters=1_000,
        compile_time_ms=3.0,
    )
