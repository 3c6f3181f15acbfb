"""The size of an installation for a number of runs: workers, partitions, brokers and bytes, from measured unit costs.

The costs are those of `unit_costs.json`, which `make scale` measures: processor time and bytes for each sampled step or
window of a run, as `fixed` + `layer` x layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.kafka import TopicNames
from tamiyo.schemas.topics import BY_NAME, CATALOGUE, PERIODIC
from tamiyo.streams.admin.topics import DAY_MS
from tamiyo.streams.admin.topics import plan as topic_plan

COSTS = Path(__file__).with_name("unit_costs.json")
DAY_S = 86_400
FEWEST_PARTITIONS = 4  # what `tamiyo topics create` makes
MOST_PARTITIONS = 10_000  # what it accepts
GROWTH = 2
"""Partitions for each worker: their number cannot grow later, and a partition is processed by one worker."""


class UnitCost(BaseModel):
    """The cost of one sampled step, window or run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per: Literal["step", "window", "run"]
    fixed: float = Field(ge=0)
    layer: float = Field(ge=0)

    def at(self, layers: int) -> float:
        """Return the cost for a network of `layers` layers."""
        return self.fixed + self.layer * layers


class Memory(BaseModel):
    """A worker's memory, bytes: `worker` + open runs x (`run` + `layer` x layers)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worker: float = Field(gt=0)
    run: float = Field(ge=0)
    layer: float = Field(ge=0)


class UnitCosts(BaseModel):
    """What `make scale` measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    steps_per_window: int = Field(ge=1, description="Sampled steps in a window of the measurement")
    processor_us: dict[str, UnitCost] = Field(min_length=1, description="Processor time by stage")
    broker_us: UnitCost
    learner_us: UnitCost
    topic_bytes: dict[str, UnitCost] = Field(min_length=1, description="Bytes on a broker's disk by topic")
    memory_bytes: Memory
    measured: dict[str, Any] = Field(description="Command, machine and versions of the measurement")

    @classmethod
    def load(cls, path: Path = COSTS) -> "UnitCosts":
        """Return the costs in a file of `make scale`.

        Args:
            path: The file; by default the one that comes with the package.

        Raises:
            ConfigurationError: The file cannot be read, or holds something else.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"cannot read the unit costs in {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "file"
            raise ConfigurationError(f"{path} holds no unit costs of `make scale`: {place}: {first['msg']}") from error
        unknown = sorted(found.topic_bytes.keys() - BY_NAME.keys())
        if unknown:
            raise ConfigurationError(f"{path} has costs of topics that this release does not have: {unknown[0]}")
        return found


@dataclass(frozen=True)
class Demand:
    """What an installation must carry, and what its machines are like."""

    runs: int
    """Runs that train at the same time."""
    layers: int
    """Watched layers of each run's network."""
    interval_s: float
    """Seconds between two sampled steps of a run."""
    steps_per_window: int = 2
    """Sampled steps in a window: its width / the SDK's sample interval."""
    replication: int = 3
    """Replicas of each partition."""
    retention_days: float | None = None
    """Replaces the catalogue's retention of topics that are not compacted."""
    utilisation: float = 0.7
    """Share of a core that a worker or a broker may use in the mean."""
    worker_memory_gib: float = 1.0
    """The memory of a worker's container."""
    broker_cores: int = 8
    broker_mb_s: float = 100.0
    """What a broker can write, replicas included, 10^6 bytes a second."""
    broker_disk_tb: float = 4.0
    """What a broker can store, 10^12 bytes."""
    broker_partitions: int = 4_000
    """Replicas of partitions that a broker can host."""


@dataclass(frozen=True)
class TopicLoad:
    """The load of one topic, one replica."""

    name: str
    bytes_per_day: float
    """0 where it grows with new runs only."""
    retention_days: float | None
    """None: compacted, so it keeps one record a run."""
    stored_bytes: float


@dataclass(frozen=True)
class Sizing:
    """The size of an installation."""

    demand: Demand
    steps_per_s: float
    records_per_s: float
    """Telemetry records that hosts publish."""
    layer_signals_per_s: float
    windows_per_s: float
    stage_cores: dict[str, float]
    """Busy cores by stage."""
    workers: int
    """Worker processes of all stages, a core each."""
    workers_for: dict[str, int]
    """The workers that each resource needs."""
    worker_memory_bytes: float
    partitions: int
    """Of every topic."""
    learner_cores: float
    learners: int
    """Learners that experiences need; an installation has one."""
    topics: list[TopicLoad]
    bytes_per_day: float
    """Of all topics, one replica."""
    stored_bytes: float
    """Of all topics, all replicas."""
    brokers: int
    brokers_for: dict[str, int]
    """The brokers that each resource needs."""


def size(demand: Demand, costs: UnitCosts) -> Sizing:
    """Return the size of an installation for a demand.

    Raises:
        ConfigurationError: A value of the demand is out of range, or no installation of this size is possible.
    """
    _check(demand)
    steps = demand.runs / demand.interval_s
    rates = {"step": steps, "window": steps / demand.steps_per_window, "run": 0.0}

    def busy(cost: UnitCost) -> float:
        return rates[cost.per] * cost.at(demand.layers) / 1e6

    stage_cores = {stage: busy(cost) for stage, cost in costs.processor_us.items()}
    workers_for = {
        "processor": math.ceil(sum(stage_cores.values()) / demand.utilisation),
        "memory": _workers_for_memory(demand, costs.memory_bytes),
    }
    workers = max(1, *workers_for.values())
    partitions = max(FEWEST_PARTITIONS, GROWTH * workers)
    if partitions > MOST_PARTITIONS:
        raise ConfigurationError(
            f"{workers:,} workers need {partitions:,} partitions of every topic, but at most {MOST_PARTITIONS:,} are "
            f"possible: use {math.ceil(partitions / MOST_PARTITIONS):,} installations, or sample less often"
        )
    topics = [_topic(name, cost, demand, rates) for name, cost in costs.topic_bytes.items()]
    per_day = sum(each.bytes_per_day for each in topics)
    stored = demand.replication * sum(each.stored_bytes for each in topics)
    replicas = demand.replication * partitions * len(topic_plan(CATALOGUE, TopicNames()))
    # A follower fetches and writes what its leader writes.
    broker_cores = demand.replication * busy(costs.broker_us)
    brokers_for = {
        "replication": demand.replication,
        "processor": math.ceil(broker_cores / demand.utilisation / demand.broker_cores),
        "writes": math.ceil(demand.replication * per_day / DAY_S / 1e6 / demand.broker_mb_s),
        "disk": math.ceil(stored / 1e12 / demand.broker_disk_tb),
        "partitions": math.ceil(replicas / demand.broker_partitions),
    }
    learner_cores = busy(costs.learner_us)
    return Sizing(
        demand=demand,
        steps_per_s=steps,
        records_per_s=len(PERIODIC) * steps,
        layer_signals_per_s=2 * demand.layers * steps,
        windows_per_s=rates["window"],
        stage_cores=stage_cores,
        workers=workers,
        workers_for=workers_for,
        worker_memory_bytes=_memory(demand, costs.memory_bytes, math.ceil(demand.runs / workers)),
        partitions=partitions,
        learner_cores=learner_cores,
        learners=max(1, math.ceil(learner_cores / demand.utilisation)),
        topics=topics,
        bytes_per_day=per_day,
        stored_bytes=stored,
        brokers=max(brokers_for.values()),
        brokers_for=brokers_for,
    )


def assumptions(sizing: Sizing, costs: UnitCosts) -> list[str]:
    """Return what a plan assumes, a sentence each."""
    demand, machine = sizing.demand, costs.measured.get("machine", {})
    found = [
        f"Unit costs as measured by `{costs.measured.get('command')}` on {machine.get('processor')}; cores like these.",
        f"Cores are busy {demand.utilisation:.0%} in the mean; runs are spread evenly over partitions and time.",
        f"A broker has {demand.broker_cores} cores, writes {demand.broker_mb_s:g} MB/s, stores "
        f"{demand.broker_disk_tb:g} TB and hosts {demand.broker_partitions:,} replicas of partitions. A follower costs "
        "as much as a leader.",
        "Hosts send simulated telemetry, each frame compressed on its own; there are no dead letters.",
        "Adaptations, kernels and caches cost nothing: they are rare beside telemetry.",
    ]
    if demand.steps_per_window != costs.steps_per_window:
        found.append(
            f"A window of {demand.steps_per_window} sampled steps costs what the measured ones of "
            f"{costs.steps_per_window} cost."
        )
    if sizing.learners > 1:
        found.append(
            f"One learner cannot use all experiences: divide the runs among {sizing.learners:,} installations with a "
            "policy each, or sample less often."
        )
    return found


def readable_bytes(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB" if count < 1000 else f"{count:,.0f} TB"


def _check(demand: Demand) -> None:
    positive = ("runs", "layers", "interval_s", "steps_per_window", "replication", "worker_memory_gib")
    for name in (*positive, "broker_cores", "broker_mb_s", "broker_disk_tb", "broker_partitions"):
        if not 0 < getattr(demand, name) < math.inf:
            raise ConfigurationError(f"{name} must be a number above 0, got {getattr(demand, name)}")
    if not 0 < demand.utilisation <= 1:
        raise ConfigurationError(f"utilisation must be above 0 and at most 1, got {demand.utilisation}")
    if demand.retention_days is not None and not 0 < demand.retention_days < math.inf:
        raise ConfigurationError(f"retention_days must be a number above 0, got {demand.retention_days}")


def _memory(demand: Demand, memory: Memory, runs: int) -> float:
    return memory.worker + runs * (memory.run + memory.layer * demand.layers)


def _workers_for_memory(demand: Demand, memory: Memory) -> int:
    limit = demand.worker_memory_gib * 2**30
    free = limit - _memory(demand, memory, 1)
    if free < 0:
        raise ConfigurationError(
            f"a worker with one run of {demand.layers:,} layers uses {_memory(demand, memory, 1) / 2**30:.2f} GiB, "
            f"more than the {demand.worker_memory_gib:g} GiB that it may use"
        )
    each = _memory(demand, memory, 1) - memory.worker
    return math.ceil(demand.runs / (1 + math.floor(free / each))) if each else 1


def _topic(name: str, cost: UnitCost, demand: Demand, rates: Mapping[str, float]) -> TopicLoad:
    topic = BY_NAME[name]
    each = cost.at(demand.layers)
    per_day = each * rates[cost.per] * DAY_S
    if topic.cleanup == "compact":
        return TopicLoad(name, per_day, None, demand.runs * each)
    days = topic.retention_ms / DAY_MS if demand.retention_days is None else demand.retention_days
    return TopicLoad(name, per_day, days, per_day * days)
