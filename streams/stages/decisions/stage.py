"""The decisions stage: one AdaptationDecision for every graph, no_op included.

A decision is a function of its graph, of the policy and the standing orders in force, and of the adaptations that this
stage decided for the run lately. Graphs that arrive before there is a policy wait for it. Each graph is a forward pass
by itself: in a batch, rounding would depend on the other graphs, and a replay must repeat every bit.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import ConfigurationError, PolicyError, RecordingError
from tamiyo.schemas.identity import decision_id
from tamiyo.schemas.stores import require_readable
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, DECISIONS, GRAPHS, OUTCOMES, Topic
from tamiyo.streams.recording.recording import Recording
from tamiyo.streams.settings import DecisionSettings, store_setting
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.decisions.decider import Decider
from tamiyo.streams.stages.decisions.history import History
from tamiyo.streams.stages.decisions.orders import ControlOrders
from tamiyo.streams.stages.decisions.policy_server import Policies, PolicyServer, Served
from tamiyo.streams.stages.decisions.recorded_policies import RecordedPolicies
from tamiyo.streams.stages.decisions.restored import RestoredDecisions
from tamiyo.streams.stages.recent_ids import RecentIds

TICK_MS = 1000  # runs are idle for minutes before they are dropped; the runner ticks many times a second
DECIDED_KEPT = 20_000  # ids of decided graphs; more than are ever read again after a restart

Outputs = list[Output | Reject]


class DecisionsStage(Stage):
    """The decisions of one partition.

    Args:
        partition: Number of the input partition.
        settings: The policy served, limits, and timeouts; `recorded` takes policies and orders from a recording.
        views: Announced checkpoints (`tamiyo.policy.checkpoints`) and standing orders (`tamiyo.control`).
    """

    name: ClassVar[str] = "decisions"
    inputs: ClassVar[tuple[Topic, ...]] = (GRAPHS, OUTCOMES)
    outputs: ClassVar[tuple[Topic, ...]] = (DECISIONS,)
    views: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, CONTROL)
    offload: ClassVar[bool] = True
    """A forward pass takes milliseconds, for which the other stages of the process need not wait."""

    @classmethod
    def check(cls, settings: DecisionSettings) -> None:
        """Raise ConfigurationError if the checkpoint store or the recording cannot be read."""
        require_readable(settings.checkpoint_url, store_setting(DecisionSettings, "checkpoint_url"))
        if settings.recorded is not None:
            try:
                Recording(Path(settings.recorded))
            except RecordingError as error:
                raise ConfigurationError(f"TAMIYO_DECISION_RECORDED={settings.recorded}: {error}") from error

    @classmethod
    def stores(cls, settings: DecisionSettings) -> Mapping[str, bool]:
        """Return the checkpoint store; a replay reads that of the recorded installation, or the recording's copy."""
        return {} if settings.recorded is not None else {settings.checkpoint_url: False}

    def __init__(self, partition: int, settings: DecisionSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self._decider = Decider(settings)
        store = CheckpointStore(settings.checkpoint_url)
        self._policies: Policies
        self._orders: ControlOrders | RecordedPolicies
        if settings.recorded is not None:
            recorded = RecordedPolicies(settings.recorded, store, partition, settings.recorded_version)
            self._policies = self._orders = recorded
        else:
            self._policies = PolicyServer(
                views[CHECKPOINTS.name], store, settings.policy, canary_share=settings.canary_share
            )
            self._orders = ControlOrders(views[CONTROL.name])
        self._runs: dict[str, History] = {}
        self._waiting: OrderedDict[str, Incoming] = OrderedDict()
        """Graphs without a policy, by decision id."""
        self._restored = RestoredDecisions()
        self._decided = RecentIds(DECIDED_KEPT)
        self._ticked_ms = 0
        self._read_all_ms: int | None = None
        """The last tick at which no record waited on the log."""

    def serve(self, policies: Policies) -> None:
        """Decide with `policies` instead of the announced ones; for the laboratory."""
        self._policies = policies

    def mask(self, graph: ModelGraph, kinds: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return the actions that would be legal if `graph` were decided on now, bool [1 + nodes x kinds]."""
        history = self._runs.get(graph.run_id) or History()
        return self._decider.mask(graph, kinds, self._orders.orders(graph), history)

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Take the decisions published before: a graph read again is not decided again under another policy."""
        self._restored.add(outputs)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Decide on graphs, or let them wait if there is no policy yet; record outcomes."""
        outputs: Outputs = []
        for incoming in batch:
            if isinstance(incoming.record, ModelGraph):
                outputs += self._take_graph(incoming)
            else:
                self._take_outcome(incoming)
            if history := self._runs.get(incoming.record.run_id):
                history.idle_timer.record(incoming.timestamp_ms)
        return outputs

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Decide on the graphs that waited for the first policy; drop idle runs."""
        if now_ms - self._ticked_ms >= TICK_MS:
            self._ticked_ms = now_ms
            for run_id, history in list(self._runs.items()):
                idle_ms = history.idle_timer.idle_ms(now_ms, backlog=self.backlog, read_all_ms=self._read_all_ms)
                if idle_ms >= 1000 * self.settings.idle_timeout_s:
                    del self._runs[run_id]
            if self.backlog == 0:
                self._read_all_ms = now_ms
        self._policies.current()  # a new policy is loaded now rather than while a graph waits for its decision
        return self._decide_waiting()

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset held of each input topic."""
        held = [(OUTCOMES.name, offset) for offset in self._restored.outcome_offsets()]
        if self._waiting:
            held.append((GRAPHS.name, next(iter(self._waiting.values())).offset))
        for history in self._runs.values():
            held += history.offsets()
        lowest: dict[str, int] = {}
        for topic, offset in held:
            lowest[topic] = min(offset, lowest.get(topic, offset))
        return lowest

    def forget(self, output: Output) -> None:
        """Let a graph whose decision was too large be decided on again: no host has it, so it is not in flight."""
        record: Any = output.record
        self._decided.discard(output.identity)
        if history := self._runs.get(record.run_id):
            history.forget(output.identity)

    def _take_graph(self, incoming: Incoming) -> Outputs:
        graph: ModelGraph = incoming.record
        name = decision_id(graph.graph_id)
        self._restored.drop_below(incoming.offset)
        if (restored := self._restored.pop(name)) is not None:
            self._record(graph, incoming.offset, *restored)
            return []
        if name in self._decided or name in self._waiting:
            return []  # a repeated graph
        self._waiting[name] = incoming
        outputs = self._decide_waiting()
        if len(self._waiting) > self.settings.max_waiting:
            _, oldest = self._waiting.popitem(last=False)
            reason = (
                f"no checkpoint of policy {self.settings.policy!r} has been announced and {self.settings.max_waiting} "
                "graphs are waiting; is the learner running?"
            )
            outputs.append(Reject(oldest, reason))
        return outputs

    def _take_outcome(self, incoming: Incoming) -> None:
        outcome: AdaptationOutcome = incoming.record
        if not self.settings.heed_outcomes or self._restored.hold_outcome(incoming):
            return
        if outcome.run_id in self._runs:
            self._runs[outcome.run_id].record_outcome(outcome, incoming.offset)

    def _decide_waiting(self) -> Outputs:
        """Decide on the waiting graphs in order, as long as there is a policy."""
        outputs: Outputs = []
        while self._waiting:
            name, incoming = next(iter(self._waiting.items()))
            try:
                served = self._policies.current(incoming.record)
            except PolicyError as error:  # the recording lacks the policy that decided on this graph
                outputs.append(Reject(self._waiting.pop(name), str(error)))
                continue
            if served is None:
                break
            outputs.append(self._decide(self._waiting.pop(name), served))
        return outputs

    def _decide(self, incoming: Incoming, served: Served) -> Output | Reject:
        """Decide on a graph with `served`, or with the policy that replaces it if it fails."""
        graph: ModelGraph = incoming.record
        if graph.feature_version != FEATURE_VERSION:
            return Reject(
                incoming,
                f"expected a graph of feature catalogue {FEATURE_VERSION}, got catalogue {graph.feature_version}: run "
                "the graphs and decisions stages at the same release",
            )
        history = self._runs.get(graph.run_id) or History()
        while True:
            try:
                decision = self._decider.decide(graph, served, self._orders.orders(graph), history)
                break
            except PolicyError as error:
                following = self._policies.current(graph) if self._policies.reject(served, error) else None
                if following is None:
                    return Reject(incoming, f"no policy can decide on this graph: {error}")
                served = following
        self._record(graph, incoming.offset, decision)
        return Output(DECISIONS, decision, decision.decision_id, incoming)

    def _record(
        self, graph: ModelGraph, offset: int, decision: AdaptationDecision, outcome: Incoming | None = None
    ) -> None:
        """Record a decision in its run's history; the run's last decision ends the history."""
        self._decided.add(decision.decision_id)
        if graph.final:
            self._runs.pop(graph.run_id, None)
            return
        history = self._runs.setdefault(graph.run_id, History())
        settings = self.settings
        keep = max(settings.rate_steps, settings.in_flight_steps, settings.cooldown_steps, graph.cooldown_steps)
        history.record(graph, offset, decision, interval=settings.decision_interval, keep_steps=keep)
        if outcome is not None:
            history.record_outcome(outcome.record, outcome.offset)
