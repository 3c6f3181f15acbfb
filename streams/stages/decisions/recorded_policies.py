"""The policy and the standing orders under which a recorded decision was made.

A replay decides under these, so that the same graph gets the same decision, whatever is announced today.
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
from tamiyo.streams.stages.decisions.orders import StandingOrders
from tamiyo.streams.stages.decisions.policy_server import ServedPolicy

R = TypeVar("R", bound=Record)

KEPT = 4  # policies in memory, 6 MB each: concurrent runs may decide under different versions


@dataclass(frozen=True, slots=True)
class _Conditions:
    """What a recorded decision was made under."""

    policy_version: int
    orders: Mapping[str, int]
    """Addressee to the order's time_ms."""


class RecordedPolicies:
    """The policies and orders of one partition of a recording."""

    def __init__(self, folder: str, store: CheckpointStore, partition: int, version: int | None) -> None:
        """Read the decisions, announcements and orders of a recording.

        Args:
            folder: The recording.
            store: Where the checkpoint files are.
            partition: Which partition's decisions to read.
            version: Decide everything with this policy version; the orders remain the recorded ones.

        Raises:
            RecordingError: If `folder` is not a recording.
        """
        recording = Recording(Path(folder))
        self._store = store
        self._version = version
        self._served: OrderedDict[int, ServedPolicy] = OrderedDict()
        self._recorded: dict[str, _Conditions] = {}
        """By decision id."""
        self._last: dict[str, _Conditions] = {}
        """By run, for graphs without a decision when the recording ended."""
        for message in recording.messages(DECISIONS, partition):
            decision = _decoded(message.value, AdaptationDecision)
            if decision is not None:
                conditions = _Conditions(decision.policy_version, decision.orders)
                self._recorded.setdefault(decision.decision_id, conditions)
                self._last[decision.run_id] = conditions
        self._announced: dict[int, PolicyCheckpoint] = {}
        for message in recording.messages(CHECKPOINTS):
            checkpoint = _decoded(message.value, PolicyCheckpoint)
            if checkpoint is not None:
                self._announced[checkpoint.version] = checkpoint
        self._orders: dict[tuple[str, int], ControlCommand] = {}
        """By addressee and time_ms."""
        for message in recording.messages(CONTROL):
            command = _decoded(message.value, ControlCommand)
            if command is not None:
                self._orders[command.run_id, command.time_ms] = command

    def current(self, graph: ModelGraph | None = None) -> ServedPolicy | None:
        """Return the policy that decided on `graph`; raises PolicyError if none is recorded or it cannot be read."""
        if graph is None:
            return None
        conditions = self._conditions(graph)
        version = self._version if self._version is not None or conditions is None else conditions.policy_version
        if version is None:
            raise PolicyError(f"the recording names no policy for run {graph.run_id}; choose one with --policy-version")
        if version not in self._served:
            self._served[version] = self._load(version)
            if len(self._served) > KEPT:
                self._served.popitem(last=False)
        self._served.move_to_end(version)
        return self._served[version]

    def reject(self, served: ServedPolicy, reason: Exception) -> bool:
        """Return False: no other policy can replace a recorded one."""
        return False

    def orders(self, graph: ModelGraph) -> StandingOrders:
        """Return the orders under which `graph` was decided; raises PolicyError if one was not recorded."""
        conditions = self._conditions(graph)
        found = []
        for key in conditions.orders.items() if conditions is not None else ():
            if key not in self._orders:
                raise PolicyError(f"the recording lacks the order for {key[0]} of time_ms {key[1]}")
            found.append(self._orders[key])
        return StandingOrders.of(found)

    def _conditions(self, graph: ModelGraph) -> _Conditions | None:
        return self._recorded.get(decision_id(graph.graph_id)) or self._last.get(graph.run_id)

    def _load(self, version: int) -> ServedPolicy:
        announced = self._announced.get(version)
        file = self._store.file_name(version)
        try:
            data = self._store.read(file)
        except OSError as error:
            raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
        policy, header, _ = load(data, announced.checksum if announced is not None else None)
        if header.version != version:
            raise PolicyError(f"checkpoint {file}: expected version {version}, got {header.version}")
        return ServedPolicy(policy, version, announced.checksum if announced is not None else "")


def _decoded(value: bytes | None, record: type[R]) -> R | None:
    try:
        return decode(value, record) if value is not None else None
    except SchemaError:
        return None  # the stage could not decode it when it was recorded either
