"""Rewards: joins decisions, their graphs, their outcomes and later windows into what each decision was worth.

An executed adaptation is judged each time one of its spans closes; spans are measured on the run's clock from where
the adaptation took effect, and close with the window that ends at or after the span's end, or with the run's last.
A span without a measured loss is unknown, never 0. Doing nothing is worth exactly 0 by definition, so it is told at
once; so are refusals, failures and vetoes, which are worth a little less than nothing.

Held, and so still unacknowledged: open decisions with their graph and outcome; graphs that no decision has answered;
and windows from `baseline_windows` before the oldest of these on. A restart reads them again, judges them again to
the same result, and the shell does not repeat what had been published.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from tamiyo.schemas.adaptation import Action, AdaptationDecision, AdaptationOutcome, DecisionType
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.identity import analysis_id, decision_id, identity
from tamiyo.schemas.learning import Experience, RewardAnalysis, SpanReward
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, OUTCOMES, REWARDS, WINDOWS, Topic
from tamiyo.streams.settings import RewardSettings
from tamiyo.streams.stages.base import Incoming, Output, PriorOutput, Reject, Stage, View
from tamiyo.streams.stages.recent_ids import RecentIds
from tamiyo.streams.stages.rewards import components as rc
from tamiyo.streams.stages.rewards.attribution import (
    ExecutedAdaptation,
    RewardEstimate,
    Span,
    estimate_reward,
    make_spans,
)
from tamiyo.streams.stages.rewards.explanation import explain_reward
from tamiyo.streams.stages.rewards.run_state import Pending, Run, is_executed, parameters_added
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

MINUTE_MS = 60_000
TICK_MS = 1000  # what ticks look for takes minutes; the shell ticks many times a second
REMEMBERED = 20_000  # decisions done with; more than are ever read again after a restart

_RISKS = {"refused": rc.REFUSED_RISK, "failed": rc.FAILED_RISK, "vetoed": rc.VETOED_RISK}


class RewardsStage(Stage):
    """The rewards of one partition."""

    name: ClassVar[str] = "rewards"
    inputs: ClassVar[tuple[Topic, ...]] = (GRAPHS, DECISIONS, OUTCOMES, WINDOWS)
    outputs: ClassVar[tuple[Topic, ...]] = (REWARDS, EXPERIENCE)
    views: ClassVar[tuple[Topic, ...]] = ()

    def __init__(self, partition: int, settings: RewardSettings, views: Mapping[str, View[Any]]) -> None:
        self.partition = partition
        self.settings = settings
        self._spans: dict[str, tuple[Span, ...]] = {
            "step": make_spans(settings.span_steps),
            "time": make_spans([minutes * MINUTE_MS for minutes in settings.span_minutes]),
        }
        self._runs: dict[str, Run] = {}
        self._done = RecentIds(REMEMBERED)
        self._ticked_ms = 0

    def restore(self, said: Iterable[PriorOutput]) -> None:
        """Learn which decisions have had their last word: they are not judged again."""
        analysed: dict[str, RewardAnalysis] = {}
        learned: set[str] = set()
        for each in said:
            if each.topic == REWARDS.name and each.record.complete:
                analysed[each.record.decision_id] = each.record
            elif each.topic == EXPERIENCE.name and each.record.complete:
                learned.add(each.record.experience_id)
        for name, analysis in analysed.items():
            if name in learned or not _teaches(analysis):
                self._done.add(name)

    def feed(self, batch: Sequence[Incoming]) -> Sequence[Output | Reject]:
        """Take graphs, decisions, outcomes and windows in any order among each other."""
        said: list[Output | Reject] = []
        for incoming in batch:
            run = self._runs.setdefault(incoming.record.run_id, Run())
            run.silence.record(incoming.timestamp_ms)
            match incoming.record:
                case HealthWindow():
                    self._take_window(run, incoming)
                case ModelGraph():
                    self._take_graph(run, incoming)
                case AdaptationDecision():
                    self._take_decision(run, incoming)
                case AdaptationOutcome():
                    self._take_outcome(run, incoming)
            said += self._advance(run, incoming)
            if run.ended and run.final_answered and run.empty:
                del self._runs[incoming.record.run_id]
        return said

    def tick(self, now_ms: int) -> Sequence[Output | Reject]:
        """Close the spans of runs that fell silent; give up on what never came."""
        if now_ms - self._ticked_ms < TICK_MS:
            return []
        self._ticked_ms = now_ms
        said: list[Output | Reject] = []
        for run_id, run in list(self._runs.items()):
            quiet_s = run.silence.idle_ms(now_ms, backlog=self.backlog) / 1000
            if not run.ended and quiet_s >= self.settings.idle_timeout_s:
                run.ended = True
            if run.ended and quiet_s >= min(self.settings.outcome_timeout_s, self.settings.idle_timeout_s):
                said += self._advance(run, None, patient=False)
                if run.empty:
                    del self._runs[run_id]
                    continue
            if quiet_s >= self.settings.join_timeout_s:
                said += self._give_up(run)
                del self._runs[run_id]
        return said

    def open_offsets(self) -> Mapping[str, int]:
        """Return the lowest offset held of each input topic."""
        lowest: dict[str, int] = {}
        for run in self._runs.values():
            for topic, offset in run.offsets():
                lowest[topic] = min(offset, lowest.get(topic, offset))
        return lowest

    # Taking records

    def _take_window(self, run: Run, incoming: Incoming) -> None:
        window: HealthWindow = incoming.record
        if run.windows and window.start <= run.windows[-1].start:
            return  # the same window twice
        run.clock = window.clock
        run.windows.append(WindowSummary.of(window, incoming.offset))
        run.ended = window.final

    def _take_graph(self, run: Run, incoming: Incoming) -> None:
        graph: ModelGraph = incoming.record
        name = decision_id(graph.graph_id)
        pending = run.pending.get(name)
        if name in self._done:
            run.final_answered |= graph.final
        elif pending is not None:
            run.final_answered |= graph.final
            pending.graph = pending.graph or incoming
        elif not run.is_answered(graph):
            run.graphs.setdefault(name, incoming)

    def _take_decision(self, run: Run, incoming: Incoming) -> None:
        decision: AdaptationDecision = incoming.record
        name = decision.decision_id
        graph = run.graphs.pop(name, None)
        run.answer(decision)
        if graph is not None:
            run.final_answered |= graph.record.final
        if name in self._done or name in run.pending:
            return  # the same decision twice
        run.pending[name] = Pending(decision, incoming, graph, run.outcomes.pop(name, None))

    def _take_outcome(self, run: Run, incoming: Incoming) -> None:
        outcome: AdaptationOutcome = incoming.record
        name = outcome.decision_id
        if is_executed(outcome):
            run.executed.setdefault(name, incoming)
        if name in self._done:
            return
        pending = run.pending.get(name)
        if pending is None:
            run.outcomes.setdefault(name, incoming)
        elif pending.outcome is None:
            pending.outcome = incoming

    # Judging

    def _advance(self, run: Run, source: Incoming | None, *, patient: bool = True) -> list[Output | Reject]:
        """Judge whatever can be; with `patient` False the host's answers are no longer waited for."""
        said: list[Output | Reject] = []
        for name, pending in list(run.pending.items()):
            if pending.graph is not None:
                said += self._settle(run, pending, source, patient)
            if name in self._done:
                del run.pending[name]
        run.trim(self.settings.baseline_windows, self.settings.max_held)
        return said

    def _settle(self, run: Run, pending: Pending, source: Incoming | None, patient: bool) -> Iterable[Output]:
        decision = pending.decision
        if decision.proposed.type == DecisionType.NO_OP:
            return self._conclude(run, pending, "none", "", source)
        if not pending.executable:
            if decision.type == DecisionType.NO_OP:
                return self._conclude(
                    run, pending, "vetoed", "; ".join(veto.reason for veto in decision.vetoes), source
                )
            return self._conclude(run, pending, "dry_run", "", source)
        if pending.outcome is None:
            if patient and not self._never_answered(run, decision):
                return ()
            return self._conclude(run, pending, "failed", "the host never answered", source)
        outcome: AdaptationOutcome = pending.outcome.record
        if not is_executed(outcome):
            return self._conclude(run, pending, str(outcome.status), outcome.reason, source)
        return self._close_spans(run, pending, outcome, source)

    def _never_answered(self, run: Run, decision: AdaptationDecision) -> bool:
        if not run.windows:
            return False
        width = run.windows[-1].end - run.windows[-1].start
        return run.now - run.position(decision) > self.settings.outcome_windows * width

    def _close_spans(
        self, run: Run, pending: Pending, outcome: AdaptationOutcome, source: Incoming | None
    ) -> Iterable[Output]:
        said: list[Output] = []
        if pending.graph is None or (run.clock is None and not run.ended):
            return said
        spans = self._spans_of(run)
        graph: ModelGraph = pending.graph.record
        decision = pending.decision
        effective_at = run.position(outcome)
        while pending.closed < len(spans):
            boundary = effective_at + spans[pending.closed].end
            if run.now < boundary and not run.ended:
                break
            pending.closed += 1
            # Not the windows beyond the boundary, so that the judgement is the same however many have come.
            known = [window for window in run.windows if window.start < boundary]
            next_adaptation_at = run.next_adaptation_at(decision.decision_id, effective_at)
            case = ExecutedAdaptation(
                effective_at=effective_at,
                layer_id=decision.layer_id,
                gated=decision.type == DecisionType.LOAD_KERNEL,
                parameters_added=parameters_added(decision, graph, outcome),
                parameter_budget=graph.parameter_budget,
                uncertainty=decision.uncertainty,
                next_adaptation_at=next_adaptation_at if next_adaptation_at < boundary else float("inf"),
            )
            judgement = estimate_reward(case, known, spans, pending.closed, self.settings.baseline_windows)
            beyond = not run.ended or any(window.middle >= boundary for window in run.windows)
            more = beyond and pending.closed < len(spans)
            said += self._tell(pending, "executed", "", judgement, pending.closed - 1, not more, source)
            if not more:
                self._done.add(decision.decision_id)
                break
        return said

    def _spans_of(self, run: Run) -> tuple[Span, ...]:
        return self._spans["time" if run.clock == "time" else "step"]

    def _conclude(
        self, run: Run, pending: Pending, status: str, reason: str, source: Incoming | None
    ) -> Iterable[Output]:
        """Tell the only word there will be on a decision that changed nothing."""
        components = {**rc.NOTHING, rc.RISK: _RISKS.get(status, 0.0)}
        spans = tuple(
            SpanReward(name=span.name, weight=span.weight, start=span.start, end=span.end, seen=False)
            for span in self._spans_of(run)
        )
        confidence = 0.0 if status == "dry_run" else 1.0
        judgement = RewardEstimate(spans, components, rc.total(components), confidence, None, None, None)
        self._done.add(pending.decision.decision_id)
        return self._tell(pending, status, reason, judgement, 0, True, source)

    def _give_up(self, run: Run) -> list[Output | Reject]:
        said: list[Output | Reject] = []
        for pending in run.pending.values():
            if pending.graph is None:
                said.append(
                    Reject(pending.source, f"the graph {pending.decision.graph_id} of this decision never came")
                )
        for outcome in run.outcomes.values():
            said.append(Reject(outcome, f"the decision {outcome.record.decision_id} of this outcome never came"))
        return said

    def _tell(
        self,
        pending: Pending,
        status: str,
        reason: str,
        judgement: RewardEstimate,
        revision: int,
        complete: bool,
        source: Incoming | None,
    ) -> Iterable[Output]:
        assert pending.graph is not None
        decision = pending.decision
        executed = Action(type=decision.type, layer_id=decision.layer_id, blueprint=decision.blueprint)
        action = decision.proposed if status == "vetoed" else executed
        last_ms = judgement.last.time_ms if judgement.last is not None else decision.time_ms
        analysis = RewardAnalysis(
            run_id=decision.run_id,
            analysis_id=analysis_id(decision.decision_id, revision),
            decision_id=decision.decision_id,
            revision=revision,
            step=decision.step,
            time_ms=last_ms,
            action=action,
            status=status,
            components=judgement.components,
            weights={name: rc.WEIGHTS[name] for name in judgement.components},
            spans=list(judgement.spans),
            total=judgement.total,
            confidence=judgement.confidence,
            improvement=judgement.improvement,
            predicted_reward=decision.predicted_reward,
            complete=complete,
            explanation=explain_reward(
                action,
                status,
                reason=reason,
                spans=judgement.spans,
                components=judgement.components,
                total=judgement.total,
                confidence=judgement.confidence,
                improvement=judgement.improvement,
            ),
        )
        yield Output(REWARDS, analysis, analysis.analysis_id, source)
        if not _teaches(analysis):
            return
        experience = Experience(
            run_id=decision.run_id,
            experience_id=decision.decision_id,
            revision=revision,
            time_ms=last_ms,
            graph=pending.graph.record,
            kinds=decision.kinds,
            action_index=decision.action_index,
            mask=decision.mask,
            probabilities=decision.probabilities,
            policy_version=decision.policy_version,
            value=decision.value,
            reward=judgement.total,
            confidence=judgement.confidence,
            success=judgement.success,
            complete=complete,
        )
        yield Output(EXPERIENCE, experience, identity("experience", decision.decision_id, revision), source)


def _teaches(analysis: RewardAnalysis) -> bool:
    """Return whether the analysis knows anything of what the action was worth; else there is nothing to learn."""
    return analysis.confidence > 0
