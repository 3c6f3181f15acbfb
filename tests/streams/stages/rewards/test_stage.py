import math

import pytest

from tamiyo.schemas.adaptation import Action, OutcomeStatus, Veto
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, OUTCOMES, REWARDS, TOPOLOGY, WINDOWS
from tamiyo.streams.stages.rewards.stage import RewardsStage
from tests.streams.stages.rewards.runs import (
    LAYER,
    SETTINGS,
    decide,
    graph_of,
    loaded,
    loss_at,
    outcome_of,
    rewards_of,
    stage,
    whole_run,
    window,
)
from tests.support.factories import make_topology, make_window
from tests.support.stage_log import FixedView, Log, StageHarness


def test_every_decision_has_a_reward_and_an_experience() -> None:
    log = whole_run()
    harness = StageHarness(stage, log.messages).run()
    decisions = {message.record.decision_id for message in log.messages if message.topic == DECISIONS.name}
    assert {record.decision_id for record in harness.records(REWARDS) if record.complete} == decisions
    assert {record.experience_id for record in harness.records(EXPERIENCE) if record.complete} == decisions
    assert harness.rejected == []


def test_no_op_earns_exactly_nothing() -> None:
    harness = StageHarness(stage, whole_run(loads=()).messages).run()
    for record in harness.records(REWARDS):
        assert record.status == "none"
        assert record.total == 0
        assert set(record.components.values()) == {0.0}
    assert {record.reward for record in harness.records(EXPERIENCE)} == {0.0}
    assert {record.success for record in harness.records(EXPERIENCE)} == {None}


def test_a_load_is_rewarded_again_as_each_span_closes() -> None:
    log = whole_run()
    harness = StageHarness(stage, log.messages).run()
    decision = loaded(log)
    revisions = rewards_of(harness, decision.decision_id)
    assert [record.revision for record in revisions] == [0, 1, 2, 3]
    assert [record.complete for record in revisions] == [False, False, False, True]
    assert [sum(span.seen for span in record.spans) for record in revisions] == [1, 2, 3, 4]
    assert [span.end for span in revisions[0].spans] == [100, 400, 1000, 2000]
    confidences = [record.confidence for record in revisions]
    assert confidences == sorted(confidences)
    assert revisions[-1].total > 0.3
    assert revisions[-1].improvement > 0.1
    assert revisions[-1].predicted_reward == 0.25
    assert "lowered the loss" in revisions[-1].explanation
    experiences = [each for each in harness.records(EXPERIENCE) if each.experience_id == decision.decision_id]
    assert [each.revision for each in experiences] == [0, 1, 2, 3]
    assert experiences[-1].reward == revisions[-1].total
    assert experiences[-1].success is True
    assert experiences[-1].graph.graph_id == decision.graph_id
    assert experiences[-1].probabilities == decision.probabilities
    assert experiences[-1].policy_version == 3


def test_a_span_closes_with_the_window_that_reaches_its_end() -> None:
    log = whole_run()
    harness = StageHarness(stage, log.messages).run()
    # Executed at step 12 * 50 + 40 + 10 = 650: the immediate span ends at 750, with window 14.
    first = next(
        each
        for each in harness.published
        if each.identity == rewards_of(harness, loaded(log).decision_id)[0].analysis_id
    )
    assert first.source is not None
    assert first.source.topic == WINDOWS.name
    assert first.source.record.end == 750


def test_a_run_that_ends_closes_its_spans_early() -> None:
    log = whole_run(windows=20)
    harness = StageHarness(stage, log.messages).run()
    revisions = rewards_of(harness, loaded(log).decision_id)
    assert [record.complete for record in revisions] == [False, True]
    assert [span.seen for span in revisions[-1].spans] == [True, True, False, False]
    assert harness.committed == {WINDOWS.name: 20, GRAPHS.name: 20, DECISIONS.name: 20, OUTCOMES.name: 1}


def test_a_refused_or_failed_adaptation_earns_slightly_less_than_nothing() -> None:
    log = Log()
    for index, (status, reason) in enumerate(
        [(OutcomeStatus.REFUSED, "parameter budget"), (OutcomeStatus.FAILED, "checksum")]
    ):
        graph = graph_of(window(index))
        decision = decide(graph, "load_kernel")
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decision)
        log.add(OUTCOMES, outcome_of(decision, status, reason=reason))
    harness = StageHarness(stage, log.messages).run()
    refused, failed = harness.records(REWARDS)
    assert (refused.status, failed.status) == ("refused", "failed")
    assert refused.total == pytest.approx(math.tanh(-0.05))
    assert failed.total == pytest.approx(math.tanh(-0.1))
    assert refused.complete
    assert "parameter budget" in refused.explanation
    assert [each.success for each in harness.records(EXPERIENCE)] == [None, None]


def test_a_vetoed_decision_earns_slightly_less_than_nothing() -> None:
    log = Log()
    graph = graph_of(window(0))
    proposed = Action(type="load_kernel", layer_id=LAYER, blueprint="parallel_expansion")
    veto = Veto(by="uncertainty", reason="too uncertain")
    log.add(GRAPHS, graph)
    log.add(DECISIONS, decide(graph, proposed=proposed, action_index=1, vetoes=[veto]))
    (record,) = StageHarness(stage, log.messages).run().records(REWARDS)
    assert (record.status, record.action) == ("vetoed", proposed)
    assert record.total == pytest.approx(math.tanh(-0.05))
    assert "too uncertain" in record.explanation


def test_a_dry_run_teaches_nothing() -> None:
    log = Log()
    graph = graph_of(window(0))
    log.add(GRAPHS, graph)
    log.add(DECISIONS, decide(graph, "load_kernel", dry_run=True))
    harness = StageHarness(stage, log.messages).run()
    (record,) = harness.records(REWARDS)
    assert (record.status, record.confidence, record.complete) == ("dry_run", 0, True)
    assert harness.records(EXPERIENCE) == []
    assert StageHarness(stage, log.messages, harness.published).run().committed[DECISIONS.name] == 1


def test_a_decision_without_an_outcome_has_failed() -> None:
    log = Log()
    for index in range(50):
        record = window(index)
        graph = graph_of(record)
        log.add(WINDOWS, record)
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decide(graph, "load_kernel" if index == 2 else "no_op"))
    harness = StageHarness(stage, log.messages).run()
    (record,) = [each for each in harness.records(REWARDS) if each.status != "none"]
    assert record.status == "failed"
    assert record.explanation == (
        f"Loading parallel_expansion at layer {LAYER} failed: the host reported no outcome. Reward -0.10."
    )


def test_after_the_runs_end_an_outcome_is_awaited_until_the_timeout() -> None:
    log = Log()
    record = window(0, final=True)
    graph = graph_of(record)
    log.add(WINDOWS, record)
    log.add(GRAPHS, graph)
    decision = decide(graph, "load_kernel")
    log.add(DECISIONS, decision)
    harness = StageHarness(stage, log.messages).run()
    for now_s in (0, 30, 59):
        harness.take(harness.stage.tick(10_000_000 + now_s * 1000))
    assert harness.records(REWARDS) == []
    assert harness.stage.open_offsets() == {WINDOWS.name: 0, GRAPHS.name: 0, DECISIONS.name: 0}
    harness.take(harness.stage.tick(10_000_000 + 61_000))
    assert [each.status for each in harness.records(REWARDS)] == ["failed"]
    assert harness.stage.open_offsets() == {}


def test_a_run_that_has_not_ended_awaits_its_outcome_longer() -> None:
    log = Log()
    graph = graph_of(window(0))
    log.add(WINDOWS, window(0))
    log.add(GRAPHS, graph)
    log.add(DECISIONS, decide(graph, "load_kernel"))
    harness = StageHarness(stage, log.messages).run()
    for now_s in (0, 61, 1799):
        harness.take(harness.stage.tick(10_000_000 + now_s * 1000))
    assert harness.records(REWARDS) == []
    harness.take(harness.stage.tick(10_000_000 + 1_801_000))
    assert [each.status for each in harness.records(REWARDS)] == ["failed"]


def first_reward(*, read_before: int) -> RewardAnalysis:
    """Return the first reward of a load at step 680; the outcome of one at step 790 is read before a window."""
    log = Log()
    outcomes = []
    for index in range(17):
        losses = {"validation_loss": loss_at(index, 12), "train_loss": 1.0}
        record = make_window(index, contribution=[0.5, 0.5, None] if index > 12 else None, model=losses)
        graph = graph_of(record)
        decision = decide(graph, "load_kernel" if index in (12, 14) else "no_op")
        if index == read_before:
            log.add(OUTCOMES, outcomes[1])
        log.add(WINDOWS, record)
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decision)
        if index in (12, 14):
            outcomes.append(outcome_of(decision, step=680 if index == 12 else 790))
        if index == 12:
            log.add(OUTCOMES, outcomes[0])
    (reward,) = rewards_of(StageHarness(stage, log.messages).run(), outcomes[0].decision_id)
    return reward


def test_an_adaptation_after_a_spans_end_does_not_change_its_reward() -> None:
    # The immediate span of the first ends at step 780, within the window from 750 to 800.
    early, late = first_reward(read_before=15), first_reward(read_before=16)
    assert early.spans[0].windows == 2
    assert early == late


def test_an_idle_run_is_closed() -> None:
    log = whole_run(windows=20, ends=False)
    harness = StageHarness(stage, log.messages).run()
    assert len(rewards_of(harness, loaded(log).decision_id)) == 1
    harness.take(harness.stage.tick(10_000))
    harness.take(harness.stage.tick(10_000 + int(SETTINGS.idle_timeout_s) * 1000))
    assert rewards_of(harness, loaded(log).decision_id)[-1].complete
    assert harness.stage.open_offsets() == {}


def test_records_whose_counterpart_does_not_arrive_are_rejected() -> None:
    log = Log()
    decision = decide(graph_of(window(0)), "load_kernel")
    log.add(DECISIONS, decision)
    log.add(OUTCOMES, outcome_of(decide(graph_of(window(1)), "load_kernel")))
    harness = StageHarness(stage, log.messages).run()
    assert harness.stage.open_offsets() == {DECISIONS.name: 0, OUTCOMES.name: 0}
    harness.take(harness.stage.tick(10_000))
    harness.take(harness.stage.tick(20_000 + int(SETTINGS.join_timeout_s) * 1000))
    assert [each.source.topic for each in harness.rejected] == [DECISIONS.name, OUTCOMES.name]
    assert harness.stage.open_offsets() == {}


def test_spans_follow_the_clock_of_the_run() -> None:
    log = Log()
    for index in range(40):
        record = window(index, loaded=12, final=index == 39)
        record = record.model_copy(
            update={
                "clock": "time",
                "start": index * 60_000,
                "end": (index + 1) * 60_000,
                "time_ms": index * 60_000 + 50_000,
            }
        )
        graph = graph_of(record)
        decision = decide(graph, "load_kernel" if index == 12 else "no_op")
        log.add(WINDOWS, record)
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decision)
        if index == 12:
            log.add(OUTCOMES, outcome_of(decision))
    revisions = rewards_of(StageHarness(stage, log.messages).run(), loaded(log).decision_id)
    assert [span.end for span in revisions[0].spans] == [300_000, 1_800_000, 7_200_000, 14_400_000]
    assert [record.revision for record in revisions] == [0, 1]
    assert revisions[-1].complete


def test_the_learner_gets_what_correlations_need() -> None:
    harness = StageHarness(stage, whole_run(refused=(30,)).messages).run()
    analyses = {(each.decision_id, each.revision): each for each in harness.records(REWARDS)}
    experiences = harness.records(EXPERIENCE)
    for each in experiences:
        analysis = analyses[each.experience_id, each.revision]
        assert (each.components, each.improvement, each.predicted_reward) == (
            analysis.components, analysis.improvement, analysis.predicted_reward,
        )  # fmt: skip
    statuses = {True: "executed", False: "none refused"}
    for each in experiences:
        assert analyses[each.experience_id, each.revision].status in statuses[each.improvement is not None]
    assert sum(each.improvement is not None for each in experiences) == 4


def test_a_rewards_task_is_its_runs_in_the_topology() -> None:
    view = FixedView({"other": make_topology(run_id="other")})
    harness = StageHarness(lambda: RewardsStage(0, SETTINGS, {TOPOLOGY.name: view}), whole_run().messages).run(until=70)
    view.records["run-1"] = make_topology(run_id="run-1")
    harness.take(harness.stage.feed(whole_run().messages[70:]))
    for topic in (REWARDS, EXPERIENCE):
        tasks = [each.task for each in harness.records(topic)]
        assert tasks == [""] * tasks.count("") + ["test"] * tasks.count("test")  # no reward waited for it
        assert tasks.count("") > 0 < tasks.count("test")


def test_without_topologies_the_task_is_not_known() -> None:
    harness = StageHarness(stage, whole_run().messages).run()
    assert {each.task for each in (*harness.records(REWARDS), *harness.records(EXPERIENCE))} == {""}
