"""What was in force when a recorded decision was made: the policy it names, and the standing orders of that time.

A replay decides under these, so that the same graph gets the same decision, whenever a policy would be read today.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tamiyo.models.checkpoint import CheckpointStore, load
from tamiyo.schemas.adaptation import AdaptationDecision, ControlCommand
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.codec import decode
from tamiyo.schemas.errors import PolicyError, SchemaError
from tamiyo.schemas.identity import decision_id
from tamiyo.schemas.learning import PolicyCheckpoint
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, DECISIONS
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.stages.decisions.policy_server import ServedPolicy

R = TypeVar("R", bound=Record)

KEPT = 4  # policies in memory, 6 MB each: runs that began under different ones take turns


@dataclass(frozen=True, slots=True)
class _Made:
    """What a recorded decision was made under."""

    policy_version: int
    orders: Mapping[str, int]


class RecordedPolicies:
    """The policies and orders of one partition of a recording."""

    def __init__(self, folder: str, store: CheckpointStore, partition: int, version: int | None) -> None:
        """With `version` that policy decides everything; the orders are those of the time all the same.

        Raises RecordingError where `folder` is no recording.
        """
        recording = Recording(Path(folder))
        self._store = store
        self._version = version
        self._served: OrderedDict[int, ServedPolicy] = OrderedDict()
        self._made: dict[str, _Made] = {}
        """By decision id."""
        self._last: dict[str, _Made] = {}
        """By run, for graphs that had no decision yet when the recording ended."""
        for message in recording.messages(DECISIONS, partition):
            decision = _decoded(message.value, AdaptationDecision)
            if decision is not None:
                made = _Made(decision.policy_version, decision.orders)
                self._made.setdefault(decision.decision_id, made)
                self._last[decision.run_id] = made
        self._announced: dict[int, PolicyCheckpoint] = {}
        for message in recording.messages(CHECKPOINTS):
            checkpoint = _decoded(message.value, PolicyCheckpoint)
            if checkpoint is not None:
                self._announced[checkpoint.version] = checkpoint
        self._orders: dict[tuple[str, int], ControlCommand] = {}
        """By whom they are for and when they were given."""
        for message in recording.messages(CONTROL):
            order = _decoded(message.value, ControlCommand)
            if order is not None:
                self._orders[order.run_id, order.time_ms] = order

    def current(self, graph: ModelGraph | None = None) -> ServedPolicy | None:
        """Return the policy that decided at `graph`; raises PolicyError where there is none, or it cannot be read."""
        if graph is None:
            return None
        made = self._of(graph)
        version = self._version if self._version is not None or made is None else made.policy_version
        if version is None:
            raise PolicyError(f"the recording names no policy for run {graph.run_id}; choose one with --policy-version")
        if version not in self._served:
            self._served[version] = self._load(version)
            if len(self._served) > KEPT:
                self._served.popitem(last=False)
        self._served.move_to_end(version)
        return self._served[version]

    def reject(self, served: ServedPolicy, reason: Exception) -> bool:
        """Return False: no other policy decides in its place."""
        return False

    def orders(self, graph: ModelGraph) -> list[ControlCommand]:
        """Return the orders in force when `graph` was decided; raises PolicyError where one was not recorded."""
        made = self._of(graph)
        found = []
        for place in made.orders.items() if made is not None else ():
            if place not in self._orders:
                raise PolicyError(f"the order for {place[0]} given at {place[1]} is not in the recording")
            found.append(self._orders[place])
        return found

    def _of(self, graph: ModelGraph) -> _Made | None:
        return self._made.get(decision_id(graph.graph_id)) or self._last.get(graph.run_id)

    def _load(self, version: int) -> ServedPolicy:
        announced = self._announced.get(version)
        file = self._store.file_name(version)
        try:
            data = self._store.read(file)
        except OSError as error:
            raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
        policy, header, _ = load(data, announced.checksum if announced is not None else None)
        if header.version != version:
            raise PolicyError(f"checkpoint {file} is of version {header.version}")
        return ServedPolicy(policy, version, announced.checksum if announced is not None else "")


def _decoded(value: bytes | None, record: type[R]) -> R | None:
    try:
        return decode(value, record) if value is not None else None
    except SchemaError:
        return None  # no stage could read it then either
