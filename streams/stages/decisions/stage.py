"""Decisions: one AdaptationDecision for every graph, no_op included.

A decision is a function of its graph, of the policy and the standing orders in force, and of the adaptations that this
stage has lately decided for the run. What forbids any adaptation at all (pause, interval, too few signals, an earlier
one still in flight, cooldown, rate, the run's end) is masked before sampling, so the recorded probabilities are exact;
what is found wrong with a sampled action is a veto, and no_op is executed in its place.

Graphs that come before there is a policy wait for it. One graph is one forward pass: the company of other graphs
would round differently, and a replay must repeat every bit.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from tamiyo.models.actions import to_action
from tamiyo.models.behaviour import choose
from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.models.features import FEATURE_VERSION
from tamiyo.models.masks import MaskLimits, cooling_down, legal_actions
from tamiyo.models.safety import SafetyLimits, SafetyMonitor
from tamiyo.models.urgency import urgency
from tamiyo.schemas.adaptation import (
    ALL_RUNS,
    AdaptationDecision,
    AdaptationOutcome,
    ControlCommand,
    DecisionType,
    Veto,
)
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.identity import decision_id, kernel_id, sampling_seed
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.topics import CHECKPOINTS, CONTROL, DECISIONS, GRAPHS, OUTCOMES, Topic
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.decisions.explanation import explain_decision
from tamiyo.streams.stages.decisions.history import INTERVAL, History
from tamiyo.streams.stages.decisions.policy_server import PolicyServer, ServedPolicy
from tamiyo.streams.stages.decisions.recorded_policies import RecordedPolicies
from tamiyo.streams.stages.recent_ids import RecentIds

TICK_MS = 1000
UNKNOWN = 2**63  # the offset of a graph that a decision does not tell of: it may always come again
REMEMBERED = 20_000  # decided graphs; more than are ever read again after a restart


@dataclass(frozen=True, slots=True)
class StandingOrders:
    """The standing orders for one run: those for all runs and its own together."""

    paused: bool = False
    dry_run: bool = False
    protected: frozenset[str] = frozenset()
    reason: str = ""
    given_ms: Mapping[str, int] = field(default_factory=dict)
    """Whom each is for, and when it was given: what a replay needs to find them again."""

    @classmethod
    def of(cls, commands: Sequence[ControlCommand | None]) -> "StandingOrders":
        """Return what blocking_vetoes if every one of `commands` does."""
        given = [command for command in commands if command is not None]
        return cls(
            paused=any(command.paused for command in given),
            dry_run=any(command.dry_run for command in given),
            protected=frozenset(layer for command in given for layer in command.protected_layers),
            given_ms={command.run_id: command.time_ms for command in given},
            reason="; ".join(command.reason for command in given if command.paused and command.reason)[:500],
        )


class DecisionsStage(Stage):
    """The decisions of one partition."""

    name: ClassVar[str] = "decisions"
    inputs: ClassVar[tuple[Topic, ...]] = (GRAPHS, OUTCOMES)
    outputs: ClassVar[tuple[Topic, ...]] = (DECISIONS,)
    views: ClassVar[tuple[Topic, ...]] = (CHECKPOINTS, CONTROL)
    offload: ClassVar[bool] = True
    """A forward pass takes milliseconds that the process's other stages need not wait."""

    def __init__(self, partition: int, settings: DecisionSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        masks = MaskLimits(cooldown_steps=settings.cooldown_steps)
        self._limits = SafetyLimits(
            max_decision_uncertainty=settings.max_decision_uncertainty,
            max_adaptations=settings.max_adaptations,
            rate_steps=settings.rate_steps,
            masks=masks,
        )
        self._monitor = SafetyMonitor(self._limits, protected=settings.protected_layers)
        self._control: View[ControlCommand] = views[CONTROL.name]
        store = CheckpointStore(settings.checkpoint_url)
        self._recorded: RecordedPolicies | None = None
        if settings.recorded is not None:
            self._recorded = RecordedPolicies(settings.recorded, store, partition, settings.recorded_version)
        self._policies = self._recorded or PolicyServer(views[CHECKPOINTS.name], store, settings.policy)
        self._waiting: OrderedDict[str, Incoming] = OrderedDict()
        """By decision id, until there is a policy."""
        self._runs: dict[str, History] = {}
        self._recalled: OrderedDict[str, tuple[AdaptationDecision, int]] = OrderedDict()
        """Said before the restart, with their graphs' offsets: these may be read again."""
        self._decided = RecentIds(REMEMBERED)
        self._early: dict[str, Incoming] = {}
        """Outcomes read again before the graph whose decision they answer."""
        self._ticked_ms = 0

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which graphs have been answered: what was decided under one policy is not decided under the next."""
        for each in said:
            # The first under an id blocking_vetoes.
            self._recalled.setdefault(each.record.decision_id, (each.record, each.sources.get(GRAPHS.name, UNKNOWN)))

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Answer graphs, or let them wait where there is no policy yet; take note of outcomes."""
        said: list[Output | Reject] = []
        for incoming in batch:
            if isinstance(incoming.record, ModelGraph):
                said += self._take_graph(incoming)
            else:
                self._take_outcome(incoming)
            if history := self._runs.get(incoming.record.run_id):
                history.silence.record(incoming.timestamp_ms)
        return said

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Answer the graphs that waited for the first policy; forget runs that fell silent."""
        if now_ms - self._ticked_ms >= TICK_MS:
            self._ticked_ms = now_ms
            for run_id, history in list(self._runs.items()):
                silent_ms = history.silence.idle_ms(now_ms, backlog=self.backlog)
                if silent_ms >= 1000 * self.settings.idle_timeout_s:
                    del self._runs[run_id]
        self._policies.current()  # a new policy is read now rather than while a graph waits for its decision
        return self._answer_waiting()

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset held of each input topic."""
        lowest: dict[str, int] = {}
        if self._waiting:
            lowest[GRAPHS.name] = next(iter(self._waiting.values())).offset
        for early in self._early.values():
            lowest[OUTCOMES.name] = min(early.offset, lowest.get(OUTCOMES.name, early.offset))
        for history in self._runs.values():
            for topic, offset in history.offsets():
                lowest[topic] = min(offset, lowest.get(topic, offset))
        return lowest

    # Taking records

    def _take_graph(self, incoming: Incoming) -> list[Output | Reject]:
        graph: ModelGraph = incoming.record
        name = decision_id(graph.graph_id)
        self._let_go(incoming.offset)
        if name in self._recalled:
            recalled, _ = self._recalled.pop(name)
            self._note(graph, incoming.offset, recalled)
            return []
        if name in self._decided or name in self._waiting:
            return []  # the same graph twice
        self._waiting[name] = incoming
        said = self._answer_waiting()
        if len(self._waiting) > self.settings.max_waiting:
            _, oldest = self._waiting.popitem(last=False)
            said.append(
                Reject(oldest, f"no policy {self.settings.policy!r} came while {len(self._waiting)} graphs waited")
            )
        return said

    def _let_go(self, offset: int) -> None:
        """Forget the recalled decisions on graphs below `offset`: a thousand of them take 7 MB and more."""
        while self._recalled:
            name, (_, at) = next(iter(self._recalled.items()))
            if at >= offset:
                break
            del self._recalled[name]
            self._early.pop(name, None)

    def _answer_waiting(self) -> list[Output | Reject]:
        said: list[Output | Reject] = []
        while self._waiting:
            name, incoming = next(iter(self._waiting.items()))
            try:
                served = self._policies.current(incoming.record)
            except PolicyError as error:  # of a recording: what decided then is not there
                said.append(Reject(self._waiting.pop(name), str(error)))
                continue
            if served is None:
                break
            said.append(self._answer(self._waiting.pop(name), served))
        return said

    def _take_outcome(self, incoming: Incoming) -> None:
        outcome: AdaptationOutcome = incoming.record
        if not self.settings.heed_outcomes:
            return
        if outcome.decision_id in self._recalled:
            self._early[outcome.decision_id] = incoming
        elif outcome.run_id in self._runs:
            self._runs[outcome.run_id].learn(outcome, incoming.offset)

    def _note(self, graph: ModelGraph, offset: int, decision: AdaptationDecision) -> None:
        self._decided.add(decision.decision_id)
        early = self._early.pop(decision.decision_id, None)
        if graph.final:
            self._runs.pop(graph.run_id, None)
            return
        history = self._runs.setdefault(graph.run_id, History())
        keep = max(self.settings.rate_steps, self.settings.in_flight_steps, self.settings.cooldown_steps)
        keep = max(keep, graph.cooldown_steps)
        history.note(graph, offset, decision, interval=self.settings.decision_interval, keep_steps=keep)
        if early is not None:
            history.learn(early.record, early.offset)

    # Deciding

    def _answer(self, incoming: Incoming, served: ServedPolicy) -> Output | Reject:
        graph: ModelGraph = incoming.record
        if graph.feature_version != FEATURE_VERSION:
            return Reject(
                incoming, f"graph of feature catalogue {graph.feature_version}, this stage reads {FEATURE_VERSION}"
            )
        while True:
            try:
                decision = self._decide(graph, served)
                break
            except PolicyError as error:
                following = self._policies.current(graph) if self._policies.reject(served, error) else None
                if following is None:
                    return Reject(incoming, f"no policy can read this graph: {error}")
                served = following
        self._note(graph, incoming.offset, decision)
        return Output(DECISIONS, decision, decision.decision_id, incoming)

    def _holds(self, graph: ModelGraph, orders: StandingOrders, history: History) -> list[Veto]:
        """Return what forbids any adaptation at this graph."""
        settings = self.settings
        found: list[Veto] = []
        since = history.steps_since(graph)
        if orders.paused:
            found.append(Veto(by="control", reason=f"the run is paused: {orders.reason or 'by an operator'}"))
        if graph.final:
            found.append(Veto(by="run", reason="the run is over"))
        if not history.due(settings.decision_interval):
            found.append(
                Veto(by=INTERVAL, reason=f"only every {settings.decision_interval}th window brings a decision")
            )
        if graph.signals < settings.min_signals_for_decision:
            found.append(
                Veto(
                    by="signals",
                    reason=f"{graph.signals} signals are fewer than the {settings.min_signals_for_decision} needed",
                )
            )
        flying = history.in_flight(graph, settings.in_flight_steps)
        if flying is not None:
            found.append(Veto(by="in_flight", reason=f"what was decided at step {flying.step} is not yet carried out"))
        elif cooling_down(graph, self._limits.masks, since):
            found.append(Veto(by="cooldown", reason="the last adaptation is too recent"))
        if history.recent(graph, settings.rate_steps) >= settings.max_adaptations:
            found.append(
                Veto(by="rate", reason=f"{settings.max_adaptations} adaptations within {settings.rate_steps} steps")
            )
        return found

    def _commands(self, graph: ModelGraph) -> Sequence[ControlCommand | None]:
        if self._recorded is not None:
            return self._recorded.orders(graph)
        return [self._control.get(ALL_RUNS), self._control.get(graph.run_id)]

    def _decide(self, graph: ModelGraph, served: ServedPolicy) -> AdaptationDecision:
        orders = StandingOrders.of(self._commands(graph))
        history = self._runs.get(graph.run_id) or History()
        blocking_vetoes = self._holds(graph, orders, history)
        protected = orders.protected | frozenset(self.settings.protected_layers)
        since = history.steps_since(graph)
        name = decision_id(graph.graph_id)
        seed = sampling_seed(name)
        kinds = served.policy.kinds
        mask = legal_actions(
            graph,
            kinds,
            limits=self._limits.masks,
            paused=bool(blocking_vetoes),
            protected=protected,
            steps_since_decision=since,
        )
        choice = choose(served.policy, graph, mask, seed=seed)
        action = to_action(choice.index, graph.layer_id, kinds)
        confidence = 1.0 - choice.uncertainty
        vetoes = self._monitor.validate(
            action,
            confidence,
            graph,
            paused=bool(blocking_vetoes),
            protected=protected,
            steps_since_decision=since,
            recent_adaptations=history.recent(graph, self.settings.rate_steps),
        )
        executed = to_action(0, graph.layer_id, kinds) if vetoes else action
        load = executed.type == DecisionType.LOAD_KERNEL and not orders.dry_run
        return AdaptationDecision(
            run_id=graph.run_id,
            decision_id=name,
            graph_id=graph.graph_id,
            step=graph.step,
            time_ms=graph.time_ms,
            type=executed.type,
            layer_id=executed.layer_id,
            blueprint=executed.blueprint,
            kernel_id=kernel_id(name) if load else None,
            proposed=action,
            vetoes=[*blocking_vetoes, *vetoes],
            dry_run=orders.dry_run,
            orders=dict(orders.given_ms),
            confidence=confidence,
            uncertainty=choice.uncertainty,
            urgency=urgency(graph, action.layer_id),
            predicted_reward=choice.predicted_reward,
            value=choice.value,
            method=choice.method,
            policy_version=served.version,
            seed=seed,
            temperature=choice.temperature,
            layers=graph.layer_id,
            kinds=list(kinds),
            action_index=choice.index,
            mask=mask.astype(np.uint8).tobytes(),
            probabilities=Tensor.of(choice.probabilities),
            log_probability=choice.log_probability,
            entropy=choice.entropy,
            explanation=explain_decision(
                action,
                graph,
                probability=float(choice.probabilities[choice.index]),
                alternatives=int(mask.sum()),
                method=choice.method,
                policy_version=served.version,
                predicted_reward=choice.predicted_reward,
                uncertainty=choice.uncertainty,
                vetoes=vetoes,
                blocking_vetoes=blocking_vetoes,
                dry_run=orders.dry_run,
            ),
        )
