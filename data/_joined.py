"""The joined table: one row a decision, with its kernel, outcome, reward and policy, as far as they are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tamiyo.data._columns import TIME, described, record_columns
from tamiyo.data._decoding import Decoded
from tamiyo.data._newest import NewestRows
from tamiyo.data._tables import provenance
from tamiyo.schemas.adaptation import Action, AdaptationDecision, AdaptationOutcome, CompiledKernel
from tamiyo.schemas.learning import RewardAnalysis, policy_orders_key
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CHECKPOINTS, DECISIONS, KERNELS, OUTCOMES, REWARDS, TOPOLOGY, Topic
from tamiyo.streams.stages.rewards.components import WEIGHTS
from tamiyo.streams.stages.rewards.spans import SPAN_WEIGHTS

NAME = "decisions"
"""Name of the table."""
OTHERS = (TOPOLOGY, KERNELS, OUTCOMES, REWARDS, CHECKPOINTS)
"""Topics that decisions are joined with."""

ORDERS_KEY = policy_orders_key("").encode()
"""How the keys of an operator's orders end, which are on the topic of checkpoints too."""

OWN = (
    "run_id", "decision_id", "graph_id", "step", "time_ms", "type", "layer_id", "blueprint", "kernel_id", "dry_run",
    "confidence", "uncertainty", "urgency", "predicted_reward", "value", "method", "policy_version", "temperature",
    "log_probability", "entropy", "explanation",
)  # fmt: skip
"""Fields of the decision that are taken as they are."""
OWN_COLUMNS = tuple(column for column in record_columns(AdaptationDecision) if column.source in OWN)
KERNEL = ("status", "reason", "parameters", "size_bytes", "compile_time_ms")
OUTCOME = ("status", "reason", "step", "time_ms", "duration_ms")
MEASURED = {
    "loss": "Held-out loss {} it was executed, nats.",
    "latency_ms": "Forward latency of the layer {} it was executed, ms.",
    "parameters": "Trainable parameters of all layers {} it was executed.",
}
"""Measurements that hosts make before and after an adaptation."""
REWARD = (
    "revision", "status", "time_ms", "complete", "confidence", "improvement", "worth", "worth_half_width", "estimator",
)  # fmt: skip


def _prefixed(prefix: str, record: type[Record], names: Sequence[str]) -> list[Any]:
    """Return the Arrow fields of some of a record's fields under a prefix, in the order of `names`."""
    columns = {column.source: column for column in record_columns(record)}
    return [described(f"{prefix}_{each.name}", each.type, each.description) for each in (columns[n] for n in names)]


PROPOSED_FIELDS = [
    *_prefixed("proposed", Action, ("type", "layer_id", "blueprint")),
    described("vetoed", pa.bool_(), "Whether the proposed action was vetoed.", nullable=False),
    described("vetoed_by", pa.list_(pa.string()), "The checks that vetoed it.", nullable=False),
    described("veto_reasons", pa.list_(pa.string()), "Their reasons.", nullable=False),
    described("probability", pa.float64(), "Of the proposed action, in the distribution it was sampled from."),
    described("legal_actions", pa.int64(), "Number of legal actions.", nullable=False),
]
TASK_FIELD = described("task", pa.string(), "What the run trains, from its topology; null: not known.")
KERNEL_SCHEMA = pa.schema(_prefixed("kernel", CompiledKernel, KERNEL))
OUTCOME_SCHEMA = pa.schema(
    [
        *_prefixed("outcome", AdaptationOutcome, OUTCOME),
        *(
            described(f"outcome_{name}_{when}", pa.float64(), text.format(when) + " Null: not measured.")
            for name, text in MEASURED.items()
            for when in ("before", "after")
        ),
    ]
)
REWARD_SCHEMA = pa.schema(
    [
        described("reward", pa.float64(), "The reward's total, in [-1, 1], of the highest revision; null: none yet."),
        *_prefixed("reward", RewardAnalysis, REWARD),
        *(described(f"reward_{name}", pa.float64(), f"Component {name}, before weighting.") for name in WEIGHTS),
        *(
            described(f"reward_{name}", pa.float64(), f"Weighted sum of the {name} span; null: not measured.")
            for name in SPAN_WEIGHTS
        ),
    ]
)
POLICY_FIELDS = [
    described("policy_time", TIME, "When the policy's version was released; null: not on the topic, as version 0."),
    described("policy_status", pa.string(), "released or rolled_back; null: not on the topic."),
]
SCHEMA = pa.schema(
    [
        *(column.field for column in OWN_COLUMNS),
        TASK_FIELD,
        *PROPOSED_FIELDS,
        *KERNEL_SCHEMA,
        *OUTCOME_SCHEMA,
        *REWARD_SCHEMA,
        *POLICY_FIELDS,
    ],
    metadata=provenance(
        ", ".join(topic.name for topic in (DECISIONS, *OTHERS)), "one decision", "Decisions with their results."
    ),
)


@dataclass(slots=True)
class _Version:
    """A policy's version."""

    released_ms: int
    newest_ms: int
    status: str
    names: set[str] = field(default_factory=set)


class DecisionJoin:
    """Joins decisions with the records of other topics. First `add` those of all `OTHERS`, then take `batch`es.

    Records under one id count once: a restarted stage may have published an output again. It keeps what other topics
    have for a decision, about 1 kB, in memory, and streams the decisions.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._tasks: dict[str, str] = {}
        self._kernels = NewestRows(KERNEL_SCHEMA)
        self._outcomes = NewestRows(OUTCOME_SCHEMA)
        self._rewards = NewestRows(REWARD_SCHEMA)
        self._versions: dict[int, _Version] = {}
        self._seen: set[str] = set()

    def add(self, topic: Topic, messages: Iterable[Decoded]) -> None:
        """Add the records of one of `OTHERS`."""
        take = {
            TOPOLOGY: self._add_topology,
            KERNELS: self._add_kernel,
            OUTCOMES: self._add_outcome,
            REWARDS: self._add_reward,
            CHECKPOINTS: self._add_checkpoint,
        }[topic]
        for each in messages:
            if not (each.message.key or b"").endswith(ORDERS_KEY):
                take(each.values)

    def new(self, messages: Iterable[Decoded]) -> Iterator[Decoded]:
        """Yield the decisions whose ids have not been there before."""
        for each in messages:
            known = len(self._seen)
            self._seen.add(each.values["decision_id"])
            if len(self._seen) > known:
                yield each

    def batch(self, messages: Sequence[Decoded]) -> Any:
        """Return the rows of decisions as a RecordBatch of `SCHEMA`."""
        decisions = [each.values for each in messages]
        ids = [each["decision_id"] for each in decisions]
        columns = [*(column.of(decisions) for column in OWN_COLUMNS), self._task_column(decisions)]
        columns += _proposed(decisions)
        for rows in (self._kernels, self._outcomes, self._rewards):
            columns += rows.take(ids).columns
        columns += self._policy_columns(decisions)
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _add_topology(self, values: dict[str, Any]) -> None:
        if values["task"]:
            self._tasks[values["run_id"]] = values["task"]

    def _add_kernel(self, values: dict[str, Any]) -> None:
        self._kernels.add(values["decision_id"], tuple(values[name] for name in KERNEL))

    def _add_outcome(self, values: dict[str, Any]) -> None:
        measured = (values[when].get(name) for name in MEASURED for when in ("before", "after"))
        self._outcomes.add(values["decision_id"], (*(values[name] for name in OUTCOME), *measured))

    def _add_reward(self, values: dict[str, Any]) -> None:
        if values["task"]:
            self._tasks.setdefault(values["run_id"], values["task"])
        spans = {each["name"]: each["total"] for each in values["spans"] if each["seen"]}
        row = (
            values["total"],
            *(values[name] for name in REWARD),
            *(values["components"].get(name) for name in WEIGHTS),
            *(spans.get(name) for name in SPAN_WEIGHTS),
        )
        self._rewards.add(values["decision_id"], row, rank=max(0, values["revision"]))

    def _add_checkpoint(self, values: dict[str, Any]) -> None:
        time_ms = values["time_ms"]
        known = self._versions.setdefault(values["version"], _Version(time_ms, -1, ""))
        known.released_ms = min(known.released_ms, time_ms)
        known.names.add(values["name"])
        if time_ms >= known.newest_ms:
            known.newest_ms, known.status = time_ms, values["status"]

    def _task_column(self, decisions: Sequence[dict[str, Any]]) -> Any:
        return pa.array([self._tasks.get(each["run_id"]) for each in decisions], pa.string())

    def _policy_columns(self, decisions: Sequence[dict[str, Any]]) -> list[Any]:
        # A decision has only the version: where two policies have released it, which one decided is not known.
        found = [self._versions.get(each["policy_version"]) for each in decisions]
        known = [each if each is not None and len(each.names) == 1 else None for each in found]
        return [
            pa.array([None if each is None else each.released_ms for each in known], TIME),
            pa.array([None if each is None else each.status for each in known], pa.string()),
        ]


def _proposed(decisions: Sequence[dict[str, Any]]) -> list[Any]:
    """Return the arrays of `PROPOSED_FIELDS`."""
    proposed = [each["proposed"] for each in decisions]
    vetoes = [each["vetoes"] for each in decisions]
    return [
        *(pa.array([each[name] for each in proposed], pa.string()) for name in ("type", "layer_id", "blueprint")),
        pa.array([bool(each) for each in vetoes], pa.bool_()),
        pa.array([[veto["by"] for veto in each] for each in vetoes], pa.list_(pa.string())),
        pa.array([[veto["reason"] for veto in each] for each in vetoes], pa.list_(pa.string())),
        pa.array([_probability(each) for each in decisions], pa.float64()),
        pa.array([len(each["mask"]) - each["mask"].count(0) for each in decisions], pa.int64()),
    ]


def _probability(decision: dict[str, Any]) -> float | None:
    """Return the probability of the sampled action; None where the decision has none at its position."""
    data, position = decision["probabilities"]["data"], decision["action_index"]
    if not 0 <= position < len(data) // 4:
        return None
    found = float(np.frombuffer(data, "<f4", count=1, offset=4 * position)[0])
    return None if math.isnan(found) else found
