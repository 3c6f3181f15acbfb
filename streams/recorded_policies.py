"""What was in force when a recorded decision was made: the policy it names, and the standing orders of that time.

A replay decides under these, so that the same graph gets the same decision, whenever a policy would be read today.
"""

from collections import OrderedDict
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
from tamiyo.streams.policies import Served
from tamiyo.streams.recording import Recording

R = TypeVar("R", bound=Record)

KEPT = 4  # policies in memory, 6 MB each: runs that began under different ones take turns
NEWEST_MS = 2**62


class RecordedPolicies:
    """The policies and orders of one partition of a recording."""

    def __init__(self, folder: str, store: CheckpointStore, partition: int, version: int | None) -> None:
        """With `version` that policy decides everything; the orders are those of the time all the same.

        Raises RecordingError where `folder` is no recording.
        """
        recording = Recording(Path(folder))
        self._store = store
        self._version = version
        self._served: OrderedDict[int, Served] = OrderedDict()
        self._made: dict[str, tuple[int, int]] = {}
        """Decision id to the policy's version, and when the decision was published."""
        self._last: dict[str, tuple[int, int]] = {}
        """The same by run, for graphs that had no decision yet when the recording ended."""
        for message in recording.messages(DECISIONS, partition):
            decision = _decoded(message.value, AdaptationDecision)
            if decision is not None:
                made = (decision.policy_version, message.timestamp_ms)
                self._made.setdefault(decision.decision_id, made)
                self._last[decision.run_id] = made
        self._announced: dict[int, PolicyCheckpoint] = {}
        for message in recording.messages(CHECKPOINTS):
            checkpoint = _decoded(message.value, PolicyCheckpoint)
            if checkpoint is not None:
                self._announced[checkpoint.version] = checkpoint
        self._orders: dict[str, list[tuple[int, ControlCommand | None]]] = {}
        """By key, in the order they were given; None where an order was taken back."""
        for message in recording.messages(CONTROL):
            order = _decoded(message.value, ControlCommand)
            if order is not None or message.value is None:
                self._orders.setdefault((message.key or b"").decode("utf-8", "replace"), []).append(
                    (message.timestamp_ms, order)
                )

    def current(self, graph: ModelGraph | None = None) -> Served | None:
        """Return the policy that decided at `graph`; raises PolicyError where there is none, or it cannot be read."""
        if graph is None:
            return None
        version, _ = self._of(graph)
        if version is None:
            raise PolicyError(f"the recording names no policy for run {graph.run_id}; choose one with --policy-version")
        if version not in self._served:
            self._served[version] = self._load(version)
            if len(self._served) > KEPT:
                self._served.popitem(last=False)
        self._served.move_to_end(version)
        return self._served[version]

    def distrust(self, served: Served, reason: Exception) -> bool:
        """Return False: no other policy decides in its place."""
        return False

    def orders(self, graph: ModelGraph, key: str) -> ControlCommand | None:
        """Return what was ordered under `key` when `graph` was decided."""
        _, time_ms = self._of(graph)
        given = [order for when, order in self._orders.get(key, ()) if when <= time_ms]
        return given[-1] if given else None

    def _of(self, graph: ModelGraph) -> tuple[int | None, int]:
        version, time_ms = self._made.get(decision_id(graph.graph_id), self._last.get(graph.run_id, (None, NEWEST_MS)))
        return (version if self._version is None else self._version), time_ms

    def _load(self, version: int) -> Served:
        announced = self._announced.get(version)
        file = self._store.file_name(version)
        try:
            data = self._store.read(file)
        except OSError as error:
            raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
        policy, header, _ = load(data, announced.checksum if announced is not None else None)
        if header.version != version:
            raise PolicyError(f"checkpoint {file} is of version {header.version}")
        return Served(policy, version, announced.checksum if announced is not None else "")


def _decoded(value: bytes | None, record: type[R]) -> R | None:
    try:
        return decode(value, record) if value is not None else None
    except SchemaError:
        return None  # no stage could read it then either
