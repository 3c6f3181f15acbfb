import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamiyo.schemas.adaptation import Action, AdaptationDecision, AdaptationOutcome, OutcomeStatus, Veto
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.identity import decision_id, graph_id, outcome_id
from tamiyo.schemas.learning import RewardAnalysis
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.topics import DECISIONS, EXPERIENCE, GRAPHS, OUTCOMES, REWARDS, WINDOWS, Topic
from tamiyo.streams.settings import RewardSettings
from tamiyo.streams.stages.rewards.stage import RewardsStage
from tests.support.factories import make_graph, make_window
from tests.support.stage_log import Log, StageHarness

GRAPH = make_graph(2)
LAYER = GRAPH.layer_id[0]
SETTINGS = RewardSettings(span_steps=(100, 400, 1000, 2000))


def stage() -> RewardsStage:
    return RewardsStage(0, SETTINGS, {})


def loss_at(index: int, loaded: int | None) -> float:
    base = 0.9 + math.exp(-index / 2)
    return base if loaded is None or index <= loaded else base * (0.6 + 0.4 * math.exp((loaded - index) / 3))


def window(index: int, *, loaded: int | None = None, final: bool = False, **fields: Any) -> HealthWindow:
    contribution = [0.5, None, None] if loaded is not None and index > loaded else None
    loss = loss_at(index, loaded)
    return make_window(
        index, final=final, contribution=contribution, model={"validation_loss": loss, "train_loss": loss}, **fields
    )


def graph_of(window: HealthWindow) -> ModelGraph:
    return GRAPH.model_copy(
        update={
            "run_id": window.run_id,
            "graph_id": graph_id(window.window_id, "topology"),
            "window_id": window.window_id,
            "step": window.last_step,
            "time_ms": window.time_ms,
            "final": window.final,
        }
    )


def decide(graph: ModelGraph, kind: str = "no_op", **fields: Any) -> AdaptationDecision:
    layer = None if kind == "no_op" else LAYER
    blueprint = "parallel_expansion" if kind == "load_kernel" else None
    action = Action(type=kind, layer_id=layer, blueprint=blueprint)
    values: dict[str, Any] = {
        "run_id": graph.run_id,
        "decision_id": decision_id(graph.graph_id),
        "graph_id": graph.graph_id,
        "step": graph.step,
        "time_ms": graph.time_ms,
        "type": kind,
        "layer_id": layer,
        "blueprint": blueprint,
        "proposed": action,
        "confidence": 0.8,
        "uncertainty": 0.2,
        "urgency": 0.5,
        "predicted_reward": 0.25,
        "value": 0.1,
        "method": "baseline",
        "policy_version": 3,
        "seed": 1,
        "temperature": 1.0,
        "layers": graph.layer_id,
        "kinds": ["load_kernel:parallel_expansion"],
        "action_index": 0 if kind == "no_op" else 1,
        "mask": b"\1\1\0\0",
        "probabilities": Tensor.of([0.5, 0.5, 0.0, 0.0]),
        "log_probability": math.log(0.5),
        "entropy": math.log(2),
    }
    return AdaptationDecision(**{**values, **fields})


def outcome_of(
    decision: AdaptationDecision,
    status: OutcomeStatus = OutcomeStatus.EXECUTED,
    *,
    step: int | None = None,
    **fields: Any,
) -> AdaptationOutcome:
    return AdaptationOutcome(
        run_id=decision.run_id,
        outcome_id=outcome_id(decision.decision_id),
        decision_id=decision.decision_id,
        step=decision.step + 10 if step is None else step,
        time_ms=decision.time_ms,
        type=decision.type,
        layer_id=decision.layer_id,
        blueprint=decision.blueprint,
        status=status,
        **fields,
    )


def whole_run(
    windows: int = 60,
    loads: tuple[int, ...] = (12,),
    *,
    run_id: str = "run-1",
    ends: bool = True,
    refused: tuple[int, ...] = (),
) -> Log:
    """A run in which kernels are loaded after the windows `loads`, in the order of the flow."""
    log = Log()
    for index in range(windows):
        final = ends and index == windows - 1
        record = window(index, loaded=loads[0] if loads else None, final=final, run_id=run_id)
        graph = graph_of(record)
        decision = decide(graph, "load_kernel" if index in (*loads, *refused) else "no_op")
        log.add(WINDOWS, record)
        log.add(GRAPHS, graph)
        log.add(DECISIONS, decision)
        if index in loads:
            log.add(OUTCOMES, outcome_of(decision, before={"parameters": 574}, after={"parameters": 1156}))
        elif index in refused:
            log.add(OUTCOMES, outcome_of(decision, OutcomeStatus.REFUSED, reason="parameter budget"))
    return log


def rewards_of(harness: StageHarness, decision: str) -> list[Any]:
    return [record for record in harness.records(REWARDS) if record.decision_id == decision]


def loaded(log: Log) -> AdaptationDecision:
    return next(m.record for m in log.messages if m.topic == DECISIONS.name and m.record.type == "load_kernel")


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


def test_a_run_that_was_idle_before_a_restart_is_closed_after_it() -> None:
    log = whole_run(windows=20, ends=False)
    harness = StageHarness(stage, log.messages).run()
    harness.take(harness.stage.tick(10**15))
    assert harness.stage.open_offsets()  # records of the run may be waiting on the log
    harness.stage.backlog = 0
    harness.take(harness.stage.tick(10**15 + 2000))
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


def test_repeats_change_nothing() -> None:
    log = whole_run()
    once = StageHarness(stage, log.messages).run()
    twice = Log()
    for message in log.messages:
        topic = next(topic for topic in RewardsStage.inputs if topic.name == message.topic)
        twice.add(topic, message.record)
        twice.add(topic, message.record)
    assert StageHarness(stage, twice.messages).run().records(REWARDS) == once.records(REWARDS)


def test_held_records_are_bounded_by_the_longest_span() -> None:
    log = whole_run(windows=200, ends=False, loads=(12, 100))
    harness = StageHarness(stage, log.messages).run()
    held = 200 - harness.committed[WINDOWS.name]
    assert held == SETTINGS.baseline_windows + 1  # the newest belongs to the next decision
    assert harness.committed[GRAPHS.name] == 200


@given(st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_the_order_across_topics_does_not_matter(seed: int) -> None:
    log = whole_run(windows=58, refused=(30,))
    rng = random.Random(seed)
    queues: dict[str, list[Any]] = {}
    for message in log.messages:
        queues.setdefault(message.topic, []).append(message)
    shuffled = []
    while queues:
        topic = rng.choice(sorted(queues))
        shuffled.append(queues[topic].pop(0))
        if not queues[topic]:
            del queues[topic]
    ordered = StageHarness(stage, log.messages).run()
    other = StageHarness(stage, shuffled).run()
    assert {each.identity: each.record for each in other.published} == {
        each.identity: each.record for each in ordered.published
    }


@given(st.lists(st.integers(1, 190), min_size=1, max_size=3), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_a_crash_anywhere_changes_nothing(crashes: list[int], batch: int) -> None:
    log = whole_run(loads=(12, 20), refused=(16,))
    whole = StageHarness(stage, log.messages).run()
    harness = StageHarness(stage, log.messages)
    for crash in sorted(crashes):
        harness.run(crash, batch=batch)
    harness.run(batch=batch)
    assert {each.identity: each.record for each in harness.published} == {
        each.identity: each.record for each in whole.published
    }
    assert harness.committed == whole.committed


def test_a_crash_between_analysis_and_experience_loses_neither() -> None:
    log = whole_run(windows=1, loads=())
    whole = StageHarness(stage, log.messages).run()
    half = StageHarness(stage, log.messages, published=[each for each in whole.published if each.topic is REWARDS])
    assert half.run().records(EXPERIENCE) == whole.records(EXPERIENCE)


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


@pytest.mark.parametrize("order", [*itertools.permutations((WINDOWS, GRAPHS, DECISIONS, OUTCOMES))], ids=lambda _: "")
def test_records_read_again_may_arrive_topic_by_topic(order: tuple[Topic, ...]) -> None:
    log = whole_run(40, (12, 15), ends=True)
    expected = StageHarness(stage, log.messages).run()
    middle = next(n for n, each in enumerate(log.messages) if each.topic == WINDOWS.name and each.offset == 20)
    harness = StageHarness(stage, log.messages).run(middle)
    names = [topic.name for topic in order]
    harness.log = sorted(log.messages[:middle], key=lambda each: names.index(each.topic)) + log.messages[middle:]
    harness.run()
    for topic in (REWARDS, EXPERIENCE):
        assert {each.model_dump_json() for each in harness.records(topic)} == {
            each.model_dump_json() for each in expected.records(topic)
        }
    assert harness.rejected == []
