"""The judge on the log of a correct run, and on the same log with one error."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamiyo.evaluation.common.live_runs import sampled_steps
from tamiyo.evaluation.common.simulated_runs import TOPICS, Load, topology
from tamiyo.evaluation.faults.collect import checkpoints, kernels
from tamiyo.evaluation.faults.judge import judge
from tamiyo.evaluation.faults.ledger import Checkpoint, Evidence, Execution, Ledger, Sample, Sent
from tamiyo.evaluation.faults.signals import released_signal_id, signal_id
from tamiyo.models.graph import build_graph
from tamiyo.schemas.adaptation import AdaptationOutcome, DecisionType, OutcomeStatus
from tamiyo.schemas.analysis import statistics_columns
from tamiyo.schemas.codec import decode, encode
from tamiyo.schemas.identity import outcome_id
from tamiyo.schemas.topics import (
    BY_NAME,
    CHECKPOINTS,
    DECISIONS,
    ERROR_RECOVERY,
    EXPERIENCE,
    GRAPHS,
    KERNEL_PERFORMANCE,
    KERNELS,
    OUTCOMES,
    REWARDS,
    SIGNALS,
    TOPOLOGY,
    WINDOWS,
    Topic,
)
from tamiyo.streams.messages import Message
from tamiyo.streams.stages.registry import STAGES
from tests.system.test_specification import start

LOAD = Load(runs=2, layers=3, frames=45, name="judged")
WIDTH = 50
Messages = dict[str, list[Message]]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Two complete runs through the real stages in one thread; every decision is executed."""
    folder: Path = tmp_path_factory.mktemp("judged")
    chain, _ = start(folder)
    ledger = Ledger()
    for run_id in LOAD.run_ids:
        chain.send(TOPOLOGY, topology(run_id, LOAD.layers), run_id)
    executed = 0
    for steps in zip(*(sampled_steps(LOAD, run) for run in range(LOAD.runs)), strict=True):
        for record in (record for step in steps for record in step):
            chain.send(TOPICS[type(record)], record, record.run_id)  # type: ignore[attr-defined]
        for decision in chain.log[DECISIONS.name][executed:]:
            executed += 1
            if decision.type != DecisionType.NO_OP:
                ledger.executions.append(Execution(decision.decision_id, decision.graph_id, decision.run_id))
                chain.send(OUTCOMES, outcome(decision), decision.run_id)
    messages = {
        name: [Message(name, 0, n, 0, b"key", encode(each)) for n, each in enumerate(records)]
        for name, records in chain.log.items()
        if name in BY_NAME
    }
    assert ledger.executions, "nothing was executed, so executions are not checked"
    return Evidence(
        ledger, messages, {}, checkpoints(f"file://{folder}/checkpoints"), kernels(f"file://{folder}/kernels")
    )


def outcome(decision: Any) -> AdaptationOutcome:
    return AdaptationOutcome(
        run_id=decision.run_id,
        outcome_id=outcome_id(decision.decision_id),
        decision_id=decision.decision_id,
        step=decision.step,
        time_ms=decision.time_ms,
        type=decision.type,
        layer_id=decision.layer_id,
        status=OutcomeStatus.EXECUTED,
    )


def kinds(evidence: Evidence) -> set[str]:
    return {each.kind for each in judge(evidence, width=WIDTH)}


def changed(evidence: Evidence, change: Callable[[Messages], object]) -> Evidence:
    """Return the evidence with changed messages."""
    messages = {name: list(found) for name, found in evidence.messages.items()}
    change(messages)
    return replace(evidence, messages=messages, _entries={})


def rewritten(topic: Topic, index: int, **fields: Any) -> Callable[[Messages], object]:
    """Return a change of fields of one record."""

    def change(messages: Messages) -> None:
        before = messages[topic.name][index]
        record = decode(before.value, topic.record).model_copy(update=fields)
        messages[topic.name][index] = replace(before, value=encode(record))

    return change


def again(topic: Topic, index: int, **fields: Any) -> Callable[[Messages], object]:
    """Return a change that repeats a record at the end of its topic with other fields."""

    def change(messages: Messages) -> None:
        before = messages[topic.name][index]
        record = decode(before.value, topic.record).model_copy(update=fields)
        messages[topic.name].append(replace(before, offset=len(messages[topic.name]), value=encode(record)))

    return change


def lost(topic: Topic, index: int) -> Callable[[Messages], object]:
    return lambda messages: messages[topic.name].pop(index)


def rejected(topic: Topic, name: str, index: int = 0) -> Callable[[Messages], object]:
    """Return a change that copies a message of `topic` to topic `name`."""

    def change(messages: Messages) -> None:
        messages.setdefault(name, []).append(replace(messages[topic.name][index], topic=name, offset=0))

    return change


def late(topic: str | None) -> Callable[[Messages], object]:
    """Return a change that appends a signal of the first step, new and too late, to the log and to `topic`."""

    def change(messages: Messages) -> None:
        again(SIGNALS, 0, signal_id="0" * 32)(messages)
        if topic is not None:
            rejected(SIGNALS, topic, -1)(messages)

    return change


def without_history(messages: Messages) -> None:
    """Build the sixth graph as a worker would that did not restore the run's windows."""
    message = messages[GRAPHS.name][5]
    graph = decode(message.value, GRAPHS.record)
    windows = [decode(each.value, WINDOWS.record) for each in messages[WINDOWS.name]]
    layouts = [decode(each.value, TOPOLOGY.record) for each in messages[TOPOLOGY.name]]
    (window,) = (each for each in windows if each.window_id == graph.window_id)
    (layout,) = (each for each in layouts if each.run_id == graph.run_id)
    messages[GRAPHS.name][5] = replace(message, value=encode(build_graph(window, layout, [])))


def test_a_correct_log_has_no_violation(right: Evidence) -> None:
    assert judge(right, width=WIDTH) == []


@pytest.mark.parametrize(
    "topic", [SIGNALS, WINDOWS, GRAPHS, DECISIONS, KERNELS, REWARDS, EXPERIENCE], ids=lambda topic: topic.name
)
def test_a_repeat_is_no_violation(right: Evidence, topic: Topic) -> None:
    assert kinds(changed(right, again(topic, 0))) == set()


@pytest.mark.parametrize(
    ("expected", "change"),
    [
        ("a frame was lost", lost(SIGNALS, -1)),
        ("a signal without a frame", again(SIGNALS, 3, signal_id="0" * 32)),
        ("a signal is wrong", rewritten(SIGNALS, 6, layer_id=["another", "layers.1", "layers.2"])),
        ("a signal is wrong", rewritten(SIGNALS, 6, time_ms=1)),
        ("a run did not end", lost(SIGNALS, -1)),
        ("a late signal was lost", late(None)),
        ("a source fell behind itself", late(SIGNALS.late)),
        ("a window is missing", lost(WINDOWS, 2)),
        ("a window without signals", again(WINDOWS, 2, window_id="0" * 32)),
        ("a window is wrong", rewritten(WINDOWS, 2, frames=4)),
        ("a window is wrong", rewritten(WINDOWS, 2, signals_digest="0" * 32)),
        ("two contents under one id", again(WINDOWS, 2, frames=4)),
        ("in time, but rejected as late", rejected(SIGNALS, SIGNALS.late)),
        ("a graph is missing", lost(GRAPHS, 2)),
        ("several graph ids", again(GRAPHS, 2, graph_id="0" * 32)),
        ("a graph is wrong", without_history),
        ("a decision is missing", lost(DECISIONS, 2)),
        ("several decision ids", again(DECISIONS, 2, decision_id="0" * 32)),
        ("two contents under one id", again(DECISIONS, 2, policy_version=9)),
        ("a decision is wrong", rewritten(DECISIONS, 2, step=7)),
        ("a decision without a graph", again(DECISIONS, 2, graph_id="0" * 32)),
        ("a kernel is missing", lost(KERNELS, 0)),
        ("a kernel is wrong", rewritten(KERNELS, 0, checksum="0" * 64)),
        ("a reward is missing", lost(REWARDS, 0)),
        ("an experience is missing", lost(EXPERIENCE, 0)),
        ("valid, but a dead letter", rejected(KERNEL_PERFORMANCE, KERNEL_PERFORMANCE.dead_letters)),
    ],
)
def test_each_error_in_a_log_is_found(right: Evidence, expected: str, change: Callable[[Messages], object]) -> None:
    assert expected in kinds(changed(right, change))


def window_too_large(*, dead: bool = True, value: bytes | None = None) -> Callable[[Messages], object]:
    """Return a change that removes a window, its graph and its decision; its last signal becomes a dead letter."""

    def change(messages: Messages) -> None:
        # The last window of a run, so that no later graph has it in its history.
        gone = messages[WINDOWS.name].pop()
        window = decode(gone.value, WINDOWS.record)
        assert window.final
        followers: dict[Topic, Callable[[Any], bool]] = {
            GRAPHS: lambda graph: graph.window_id == window.window_id,
            DECISIONS: lambda decision: (decision.run_id, decision.step) == (window.run_id, window.last_step),
        }
        for topic, follows in followers.items():
            kept = [each for each in messages[topic.name] if not follows(decode(each.value, topic.record))]
            assert len(kept) == len(messages[topic.name]) - 1
            messages[topic.name] = kept
        closing = messages[SIGNALS.name][-1]
        headers = (
            ("tamiyo-source", closing.place.encode()),
            ("tamiyo-output", WINDOWS.name.encode()),
            ("tamiyo-id", window.window_id.encode()),
        )
        if dead:
            letter = replace(closing, topic=SIGNALS.dead_letters, offset=0, headers=headers)
            messages[SIGNALS.dead_letters] = [replace(letter, value=value or closing.value)]

    return change


@pytest.mark.parametrize(
    ("change", "max_bytes", "found"),
    [
        (window_too_large(), 1_000, set()),
        (window_too_large(dead=False), 1_000, {"a window is missing"}),
        (window_too_large(), 10**6, {"small enough, but a dead letter"}),
        (window_too_large(value=b"other bytes"), 1_000, {"a dead letter is wrong"}),
        (lambda messages: None, 1_000, set()),
    ],
)
def test_a_window_too_large_is_represented_by_the_signal_that_closed_it(
    right: Evidence, change: Callable[[Messages], object], max_bytes: int, found: set[str]
) -> None:
    wrong = judge(changed(right, change), width=WIDTH, max_bytes=max_bytes)
    assert {each.kind for each in wrong} == found


def test_a_dead_letter_for_an_output_that_is_there_is_found(right: Evidence) -> None:
    def change(messages: Messages) -> None:
        whole = {name: list(found) for name, found in messages.items()}
        window_too_large()(messages)
        messages.update({**whole, SIGNALS.dead_letters: messages[SIGNALS.dead_letters]})

    wrong = judge(changed(right, change), width=WIDTH, max_bytes=1_000)
    assert {each.kind for each in wrong} == {"a dead letter for nothing"}


@pytest.mark.parametrize(("end", "found"), [(1, set()), (0, {"a commit passed an input without an output"})])
def test_a_commit_may_not_pass_the_dead_letter_of_a_window_too_large(
    right: Evidence, end: int, found: set[str]
) -> None:
    evidence = changed(right, window_too_large())
    held = (STAGES["windows"].group, SIGNALS.name, 0)
    ends = {(name, 0): len(messages) for name, messages in evidence.messages.items()}
    sample = Sample({held: len(evidence.messages[SIGNALS.name])}, {**ends, (SIGNALS.dead_letters, 0): end})
    wrong = judge(replace(evidence, ledger=Ledger(samples=[sample]), _entries={}), width=WIDTH, max_bytes=1_000)
    assert {each.kind for each in wrong} == found


def test_a_late_signal_on_its_topic_is_not_lost(right: Evidence) -> None:
    assert "a late signal was lost" not in kinds(changed(right, late(SIGNALS.late)))


def test_a_signal_after_the_end_of_its_run_is_late(right: Evidence) -> None:
    last = max(n for n, each in enumerate(right.records(SIGNALS)) if not each.record.final)
    found = kinds(changed(right, again(SIGNALS, last, signal_id="0" * 32)))
    assert "a late signal was lost" in found
    assert "a run did not end" not in found


def test_a_signal_on_another_partition_than_its_frame_is_found(right: Evidence) -> None:
    def change(messages: Messages) -> None:
        messages[SIGNALS.name][0] = replace(messages[SIGNALS.name][0], partition=1)

    assert "a signal is wrong" in kinds(changed(right, change))


@pytest.mark.parametrize("topic", [KERNEL_PERFORMANCE, GRAPHS, OUTCOMES, EXPERIENCE], ids=lambda topic: topic.name)
def test_a_run_that_moved_to_another_partition_is_found(right: Evidence, topic: Topic) -> None:
    def change(messages: Messages) -> None:
        messages[topic.name][-1] = replace(messages[topic.name][-1], partition=5)

    assert "a run is on two partitions" in kinds(changed(right, change))


@pytest.mark.parametrize(("tombstone", "found"), [(True, set()), (False, {"a key is alive on two partitions"})])
def test_a_key_that_moved_is_deleted_where_it_was(right: Evidence, tombstone: bool, found: set[str]) -> None:
    """As after `tamiyo topics grow`: a topology on its new partition, and a tombstone on its old one."""

    def change(messages: Messages) -> None:
        message = messages[TOPOLOGY.name][-1]
        messages[TOPOLOGY.name].append(replace(message, partition=5, offset=0))
        if tombstone:
            messages[TOPOLOGY.name].append(replace(message, offset=9, value=None))

    assert kinds(changed(right, change)) == found


def of_the_last_release(right: Evidence, *, both: bool) -> Evidence:
    """Return the evidence with the signal of an error under the id that 0.1.0 gives it; `both`: also today's."""
    error = right.records(ERROR_RECOVERY)[0]
    today = signal_id(ERROR_RECOVERY.name, error.record)
    (index,) = (n for n, each in enumerate(right.records(SIGNALS)) if each.record.signal_id == today)
    return changed(right, (again if both else rewritten)(SIGNALS, index, signal_id=released_signal_id(error)))


@pytest.mark.parametrize(
    ("upgraded", "both", "found"), [(True, False, False), (False, False, True), (True, True, True)]
)
def test_an_error_has_one_signal_under_the_id_of_either_release_after_an_upgrade(
    right: Evidence, upgraded: bool, both: bool, found: bool
) -> None:
    evidence = replace(
        of_the_last_release(right, both=both), ledger=replace(right.ledger, upgraded=upgraded), _entries={}
    )
    wrong = [
        each for each in judge(evidence, width=WIDTH) if each.kind in ("a signal without a frame", "a frame was lost")
    ]
    assert bool(wrong) == found


def test_a_mean_that_is_off_by_a_millionth_is_found(right: Evidence) -> None:
    window = right.records(WINDOWS)[2].record
    stats = window.metrics["gradient_norm"]
    off = replace(stats, mean=stats.mean * np.where(np.arange(len(stats.mean)) == 0, 1 + 1e-6, 1.0))
    columns = statistics_columns({**window.metrics, "gradient_norm": off})
    change = rewritten(WINDOWS, 2, columns=columns)
    assert "a window is wrong" in kinds(changed(right, change))


@pytest.mark.parametrize(("ahead", "found"), [(0, set()), (1, {"a commit passed an input without an output"})])
def test_a_commit_may_not_pass_the_outputs_of_its_time(right: Evidence, ahead: int, found: set[str]) -> None:
    graph = right.records(GRAPHS)[4]
    (decision,) = (each for each in right.records(DECISIONS) if each.record.graph_id == graph.record.graph_id)
    ends = {(DECISIONS.name, 0): decision.message.offset + 1}
    held = ("tamiyo_decisions", GRAPHS.name, 0)
    sample = Sample({held: graph.message.offset + 1 + ahead}, ends)
    assert kinds(replace(right, ledger=Ledger(samples=[sample]), _entries={})) == found


@pytest.mark.parametrize(
    ("stage", "topic", "output"),
    [
        ("intake", KERNEL_PERFORMANCE, SIGNALS),
        ("windows", SIGNALS, WINDOWS),
        ("graphs", WINDOWS, GRAPHS),
        ("decisions", GRAPHS, DECISIONS),
        ("kernels", DECISIONS, KERNELS),
        ("rewards", DECISIONS, REWARDS),
    ],
)
def test_a_commit_of_every_stage_is_checked_against_its_output(
    right: Evidence, stage: str, topic: Topic, output: Topic
) -> None:
    held = (STAGES[stage].group, topic.name, 0)
    end = len(right.messages[topic.name])
    ends = {(name, 0): len(found) for name, found in right.messages.items()}
    for sample, found in (
        (Sample({held: end}, ends), set()),
        (Sample({held: end}, {**ends, (output.name, 0): 0}), {"a commit passed an input without an output"}),
    ):
        assert kinds(replace(right, ledger=Ledger(samples=[sample]), _entries={})) == found


def test_a_commit_beyond_the_end_is_found(right: Evidence) -> None:
    end = len(right.messages[GRAPHS.name])
    held = ("tamiyo_decisions", GRAPHS.name, 0)
    assert kinds(replace(right, committed={held: end}, _entries={})) == set()
    assert kinds(replace(right, committed={held: end + 1}, _entries={})) == {"a commit is beyond the end"}


def test_two_decisions_executed_for_one_graph_are_found(right: Evidence) -> None:
    (one, *_) = right.ledger.executions
    ledger = Ledger(executions=[one, replace(one, decision_id="another")])
    assert kinds(replace(right, ledger=ledger, _entries={})) == {"executed twice"}


@pytest.mark.parametrize(("value", "found"), [(None, set()), (b"other bytes", {"the broker lost a message"})])
def test_the_bytes_at_an_acknowledged_offset_are_those_sent(
    right: Evidence, value: bytes | None, found: set[str]
) -> None:
    message = right.messages[KERNEL_PERFORMANCE.name][3]
    sent = Sent(message.topic, message.partition, message.offset, b"key", value or message.value or b"")
    assert kinds(replace(right, ledger=Ledger(sent=[sent]), _entries={})) == found


def test_errors_that_only_the_ledger_shows_are_found(right: Evidence) -> None:
    (one, *_) = right.ledger.executions
    refused = Sent(KERNEL_PERFORMANCE.name, 0, 10**6, b"key", b"no record", valid=False)
    ledger = Ledger(executions=[one, one], sent=[refused], crashes=["worker-1 ended with status 70"])
    assert kinds(replace(right, ledger=ledger, _entries={})) == {
        "executed twice",
        "the broker lost a message",
        "an invalid message was lost",
        "a bug ended a process",
    }


@pytest.mark.parametrize(
    ("experiences", "offset", "found"),
    [(5, 5, set()), (6, 5, {"experiences were miscounted"}), (4, 5, {"experiences were miscounted"})],
)
def test_a_checkpoint_counts_the_experiences_before_its_offsets(
    right: Evidence, experiences: int, offset: int, found: set[str]
) -> None:
    ids = [each.record.experience_id for each in right.records(EXPERIENCE)]
    assert len(set(ids[:offset])) == offset
    checkpoint = Checkpoint(1, experiences, 1, {"0": offset}, "0" * 64)
    assert kinds(announced_as_well(right, checkpoint)) == found


def announced_as_well(evidence: Evidence, *more: Checkpoint) -> Evidence:
    """Return the evidence with further checkpoints, which are announced."""
    messages = {name: list(found) for name, found in evidence.messages.items()}
    (first,) = messages[CHECKPOINTS.name]
    record = decode(first.value, CHECKPOINTS.record)
    for number, each in enumerate(more, 1):
        changes = {"version": each.version, "checksum": each.checksum}
        messages[CHECKPOINTS.name].append(
            replace(first, offset=number, value=encode(record.model_copy(update=changes)))
        )
    return replace(evidence, messages=messages, checkpoints=[*evidence.checkpoints, *more], _entries={})


def test_an_older_policy_announced_after_the_newest_is_found(right: Evidence) -> None:
    older, newest = (Checkpoint(version, 5, version, {"0": 5}, "0" * 64) for version in (1, 2))
    assert kinds(announced_as_well(right, older, newest)) == set()
    assert kinds(announced_as_well(right, newest, older)) == {"the newest policy was not announced last"}
    assert kinds(announced_as_well(right, newest, older, newest)) == set()


def test_a_policy_that_learned_less_than_the_one_before_it_is_found(right: Evidence) -> None:
    first, second = (Checkpoint(version, 5, updates, {"0": 5}, "0" * 64) for version, updates in ((1, 2), (2, 1)))
    assert kinds(announced_as_well(right, first, second)) == {"learning went backwards"}


def test_a_policy_other_than_the_announced_one_is_found(right: Evidence) -> None:
    (stored,) = right.checkpoints
    other = replace(stored, checksum="0" * 64)
    assert kinds(replace(right, checkpoints=[other], _entries={})) == {"a policy differs from its announcement"}
    assert kinds(replace(right, checkpoints=[], _entries={})) == {"a policy differs from its announcement"}
