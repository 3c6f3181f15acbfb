"""The rewards stage: joins decision, graph, outcome and later windows into RewardAnalysis and Experience.

An executed adaptation is rewarded each time one of its spans closes. Spans are measured on the run's clock from where
the adaptation took effect, and close with the window that ends at or after the span's end, or with the run's last.
What changed nothing (no_op, vetoed, refused, failed) has its only, final reward at once.

The stage keeps pending decisions with their graph and outcome, graphs without a decision, and windows from
`baseline_windows` before the oldest of these on. Their offsets are not committed: a restarted stage reads them again,
computes the same rewards, and publishes none of them twice.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.errors import ConfigurationError, PolicyError
from tamiyo.schemas.identity import decision_id, identity
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, OUTCOMES, REWARDS, TOPOLOGY, WINDOWS, Topic
from tamiyo.streams.settings import RewardSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.recent_ids import RecentIds
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.attribution import RewardEstimate, estimate_reward, unexecuted
from tamiyo.streams.stages.rewards.estimator import GainEstimator, load_estimator
from tamiyo.streams.stages.rewards.evidence import Case
from tamiyo.streams.stages.rewards.outputs import is_informative, make_analysis, make_experience
from tamiyo.streams.stages.rewards.run_state import Pending, Run
from tamiyo.streams.stages.rewards.spans import Span, make_spans
from tamiyo.streams.stages.rewards.status import RewardStatus

MINUTE_MS = 60_000
TICK_MS = 1000  # the timeouts are minutes; the runner ticks many times a second
COMPLETED_KEPT = 20_000  # decisions with a final reward; more than are ever read again after a restart

Outputs = list[Output | Reject]


class RewardsStage(Stage):
    """The rewards of one partition.

    Args:
        partition: Number of the input partition.
        settings: Ends of the spans, length of the baseline, and timeouts.
        views: The newest topology of each run, under the topology topic's name; without it no run's task is known.
    """

    name: ClassVar[str] = "rewards"
    inputs: ClassVar[tuple[Topic, ...]] = (GRAPHS, DECISIONS, OUTCOMES, WINDOWS)
    outputs: ClassVar[tuple[Topic, ...]] = (REWARDS, EXPERIENCE)
    views: ClassVar[tuple[Topic, ...]] = (TOPOLOGY,)

    @classmethod
    def check(cls, settings: RewardSettings) -> None:
        """Raise ConfigurationError if the estimator cannot be read."""
        try:
            load_estimator(settings.estimator)
        except PolicyError as error:
            raise ConfigurationError(f"TAMIYO_REWARD_ESTIMATOR: {error}") from error

    def __init__(self, partition: int, settings: RewardSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self._topologies: View[ModelTopology] | None = views.get(TOPOLOGY.name)
        self._spans: dict[str, tuple[Span, ...]] = {
            "step": make_spans(settings.span_steps),
            "time": make_spans([minutes * MINUTE_MS for minutes in settings.span_minutes]),
        }
        self._runs: dict[str, Run] = {}
        self._completed = RecentIds(COMPLETED_KEPT)
        """Ids of decisions whose final reward was published."""
        self._ticked_ms = 0
        self._read_all_ms: int | None = None
        """The last tick at which no record waited on the log."""
        self._estimator: GainEstimator = load_estimator(settings.estimator)

    def use(self, estimator: GainEstimator) -> None:
        """Estimate gains with `estimator` instead of the configured one; for the laboratory."""
        self._estimator = estimator

    def restore(self, outputs: Iterable[PriorOutput]) -> None:
        """Find the decisions whose final reward and experience were both published; they are not rewarded again."""
        analyses: dict[str, RewardAnalysis] = {}
        experiences: set[str] = set()
        for each in outputs:
            if each.topic == REWARDS.name and each.record.complete:
                analyses[each.record.decision_id] = each.record
            elif each.topic == EXPERIENCE.name and each.record.complete:
                experiences.add(each.record.experience_id)
        for name, analysis in analyses.items():
            if name in experiences or not is_informative(analysis):
                self._completed.add(name)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Take graphs, decisions, outcomes and windows; their order across topics does not matter."""
        outputs: Outputs = []
        for incoming in batch:
            run = self._runs.setdefault(incoming.record.run_id, Run())
            run.idle_timer.record(incoming.timestamp_ms)
            self._join(run, incoming)
            outputs += self._advance(run, incoming)
            if run.ended and run.final_decided and run.empty:
                del self._runs[incoming.record.run_id]
        return outputs

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Close the spans of idle runs; reject records whose counterpart did not arrive within `join_timeout_s`."""
        if now_ms - self._ticked_ms < TICK_MS:
            return []
        self._ticked_ms = now_ms
        outputs: Outputs = []
        for run_id, run in list(self._runs.items()):
            idle_s = run.idle_timer.idle_ms(now_ms, backlog=self.backlog, read_all_ms=self._read_all_ms) / 1000
            if not run.ended and idle_s >= self.settings.idle_timeout_s:
                run.ended = True
            if run.ended and idle_s >= min(self.settings.outcome_timeout_s, self.settings.idle_timeout_s):
                outputs += self._advance(run, None, await_outcomes=False)
                if run.empty:
                    del self._runs[run_id]
                    continue
            if idle_s >= self.settings.join_timeout_s:
                outputs += _reject_unjoined(run)
                del self._runs[run_id]
        if self.backlog == 0:
            self._read_all_ms = now_ms
        return outputs

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset held of each input topic."""
        lowest: dict[str, int] = {}
        for run in self._runs.values():
            for topic, offset in run.offsets():
                lowest[topic] = min(offset, lowest.get(topic, offset))
        return lowest

    def _join(self, run: Run, incoming: Incoming) -> None:
        match incoming.record:
            case HealthWindow():
                run.add_window(incoming)
            case ModelGraph(graph_id=graph_id):
                run.add_graph(incoming, completed=decision_id(graph_id) in self._completed)
            case AdaptationDecision(decision_id=name):
                run.add_decision(incoming, completed=name in self._completed)
            case AdaptationOutcome(decision_id=name):
                run.add_outcome(incoming, completed=name in self._completed)

    def _advance(self, run: Run, source: Incoming | None, *, await_outcomes: bool = True) -> Outputs:
        """Reward every pending decision that can be; without `await_outcomes`, a missing outcome is a failure."""
        outputs: Outputs = []
        for name, pending in list(run.pending.items()):
            if pending.graph is not None:
                outputs += self._reward(run, pending, pending.graph.record, source, await_outcomes)
            if name in self._completed:
                del run.pending[name]
        run.trim(self.settings.baseline_windows, self.settings.max_held)
        return outputs

    def _reward(
        self, run: Run, pending: Pending, graph: ModelGraph, source: Incoming | None, await_outcomes: bool
    ) -> Iterator[Output]:
        ending = self._ending(run, pending, await_outcomes)
        if ending is None:
            return
        status, reason = ending
        if status is RewardStatus.EXECUTED:
            yield from self._close_spans(run, pending, graph, source)
        else:
            estimate = unexecuted(status, self._spans_of(run))
            task = self._task_of(run, pending.decision.run_id)
            analysis = make_analysis(
                pending.decision, status, estimate, revision=0, complete=True, task=task, reason=reason
            )
            yield from self._publish(pending.decision, graph, analysis, None, source)

    def _ending(self, run: Run, pending: Pending, await_outcomes: bool) -> tuple[RewardStatus, str] | None:
        """Return how a decision ended, and why it was not executed; None while its outcome may still arrive."""
        decision = pending.decision
        if decision.proposed.type == DecisionType.NO_OP:
            return RewardStatus.NONE, ""
        if decision.type == DecisionType.NO_OP:
            return RewardStatus.VETOED, "; ".join(veto.reason for veto in decision.vetoes)
        if decision.dry_run:
            return RewardStatus.DRY_RUN, ""
        if pending.outcome is not None:
            outcome: AdaptationOutcome = pending.outcome.record
            return RewardStatus(outcome.status.value), outcome.reason
        if await_outcomes and not self._outcome_overdue(run, decision):
            return None
        return RewardStatus.FAILED, "the host reported no outcome"

    def _outcome_overdue(self, run: Run, decision: AdaptationDecision) -> bool:
        if not run.windows:
            return False
        width = run.windows[-1].end - run.windows[-1].start
        return run.now - run.position(decision) > self.settings.outcome_windows * width

    def _close_spans(self, run: Run, pending: Pending, graph: ModelGraph, source: Incoming | None) -> Iterator[Output]:
        """Publish one revision for each span that has ended since the last call."""
        assert pending.outcome is not None
        if run.clock is None and not run.ended:
            return
        decision = pending.decision
        spans = self._spans_of(run)
        complete = False
        while not complete:
            boundary = run.position(pending.outcome.record) + spans[pending.closed].end
            if run.now < boundary and not run.ended:
                return
            pending.closed += 1
            estimate = self._estimate(run, pending, graph)
            # If the run has ended and no window lies beyond the boundary, the later spans will never be seen.
            beyond = not run.ended or any(window.middle >= boundary for window in run.windows)
            complete = pending.closed == len(spans) or not beyond
            revision = pending.closed - 1
            task = self._task_of(run, decision.run_id)
            analysis = make_analysis(
                decision, RewardStatus.EXECUTED, estimate, revision=revision, complete=complete, task=task
            )
            yield from self._publish(decision, graph, analysis, estimate.success, source)

    def _estimate(self, run: Run, pending: Pending, graph: ModelGraph) -> RewardEstimate:
        """Estimate the reward from the spans closed so far."""
        spans = self._spans_of(run)
        cases = [self._case(run, pending, graph, span) if i < pending.closed else None for i, span in enumerate(spans)]
        return estimate_reward(cases, spans, self._estimator)

    def _case(self, run: Run, pending: Pending, graph: ModelGraph, span: Span) -> Case:
        """Return what was known when `span` ended; outcomes from then on must not matter, read or not."""
        assert pending.outcome is not None
        decision, outcome = pending.decision, pending.outcome.record
        effective_at = run.position(outcome)
        boundary = effective_at + span.end
        later = [(at, o) for at, o in run.later_adaptations(decision.decision_id, effective_at) if at < boundary]
        adaptation = ExecutedAdaptation.of(
            decision,
            graph,
            outcome,
            effective_at=effective_at,
            next_adaptation_at=min((at for at, _ in later), default=math.inf),
        )
        return Case(
            decision=decision,
            graph=graph,
            outcome=outcome,
            adaptation=adaptation,
            windows=run.windows,
            later=later,
            span_start=effective_at + span.start,
            now=min(boundary, run.now),
            ended=run.ended and boundary >= run.now,
            baseline_windows=self.settings.baseline_windows,
        )

    def _publish(
        self,
        decision: AdaptationDecision,
        graph: ModelGraph,
        analysis: RewardAnalysis,
        success: bool | None,
        source: Incoming | None,
    ) -> Iterator[Output]:
        if analysis.complete:
            self._completed.add(decision.decision_id)
        yield Output(REWARDS, analysis, analysis.analysis_id, source)
        if is_informative(analysis):
            experience = make_experience(decision, graph, analysis, success=success)
            name = identity("experience", decision.decision_id, analysis.revision)
            yield Output(EXPERIENCE, experience, name, source)

    def _task_of(self, run: Run, run_id: str) -> str:
        """Return what the run trains, "" while its topology has not arrived: no reward waits for a name."""
        if run.task is None and self._topologies is not None:
            topology = self._topologies.get(run_id)
            run.task = None if topology is None else topology.task
        return run.task or ""

    def _spans_of(self, run: Run) -> tuple[Span, ...]:
        return self._spans["time" if run.clock == "time" else "step"]


def _reject_unjoined(run: Run) -> Iterator[Reject]:
    for pending in run.pending.values():
        if pending.graph is None:
            yield Reject(pending.source, f"the graph {pending.decision.graph_id} of this decision did not arrive")
    for outcome in run.outcomes.values():
        yield Reject(outcome, f"the decision {outcome.record.decision_id} of this outcome did not arrive")
