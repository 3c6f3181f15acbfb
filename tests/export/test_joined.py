"""The joined table: what became of each decision, as far as the topics have it."""

from pathlib import Path
from typing import Any

import pytest

from tamiyo.data import decisions
from tamiyo.data._joined import OTHERS, SCHEMA
from tamiyo.data._newest import CHUNK, NewestRows
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, OutcomeStatus, Veto
from tamiyo.schemas.identity import analysis_id, decision_id, outcome_id
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, RewardAnalysis, SpanReward, policy_orders_key
from tamiyo.schemas.record import Record, Tensor
from tamiyo.schemas.topics import CHECKPOINTS, DECISIONS, KERNELS, OUTCOMES, REWARDS, TOPOLOGY, Topic
from tamiyo.streams.recording.topic_reader import Selection
from tests.export.support import TIME_MS, as_messages, record_topics, time
from tests.support.factories import make_topology
from tests.support.recordings import make_recording
from tests.support.runs import decision

Content = dict[Topic, list[Record]]


def kernel(of: AdaptationDecision, **more: Any) -> CompiledKernel:
    values = {
        "run_id": of.run_id, "kernel_id": of.kernel_id, "decision_id": of.decision_id, "layer_id": of.layer_id,
        "blueprint": of.blueprint, "status": "compiled", "parameters": 48,
    }  # fmt: skip
    return CompiledKernel(**{**values, **more})


def outcome(of: AdaptationDecision, **more: Any) -> AdaptationOutcome:
    values = {
        "run_id": of.run_id, "outcome_id": outcome_id(of.decision_id), "decision_id": of.decision_id, "step": 12,
        "time_ms": TIME_MS, "type": of.type, "layer_id": of.layer_id, "status": OutcomeStatus.EXECUTED,
        "before": {"loss": 1.5, "parameters": 100.0}, "after": {"loss": 1.25, "parameters": 148.0}, "duration_ms": 3.0,
    }  # fmt: skip
    return AdaptationOutcome(**{**values, **more})


def reward(of: AdaptationDecision, revision: int = 0, **more: Any) -> RewardAnalysis:
    seen = SpanReward(name="short_term", weight=0.4, start=10, end=50, seen=True, total=0.3)
    unseen = SpanReward(name="long_term", weight=0.05, start=50, seen=False)
    values = {
        "run_id": of.run_id, "analysis_id": analysis_id(of.decision_id, revision), "decision_id": of.decision_id,
        "revision": revision, "step": of.step, "time_ms": TIME_MS, "action": of.proposed, "status": "executed",
        "components": {"accuracy_improvement": 0.5, "of_the_future": 1.0}, "weights": {"accuracy_improvement": 1.0},
        "spans": [seen, unseen], "total": 0.25, "confidence": 0.8,
    }  # fmt: skip
    return RewardAnalysis(**{**values, **more})


def checkpoint(version: int, **more: Any) -> PolicyCheckpoint:
    values = {
        "name": "tamiyo", "version": version, "time_ms": TIME_MS, "status": CheckpointStatus.RELEASED, "file": "f",
        "checksum": "", "size_bytes": 1, "feature_version": 1, "blueprints": [], "offsets": {},
    }  # fmt: skip
    return PolicyCheckpoint(**{**values, **more})


def joined(folder: Path, content: Content, **more: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = decisions(recording=record_topics(folder, content), **more).to_pylist()
    return rows


def test_a_decision_with_everything_about_it(tmp_path: Path) -> None:
    made = decision("d", step=10, policy_version=3, probabilities=Tensor.of([0.25, 0.75]), mask=b"\1\1\0")
    content: Content = {
        DECISIONS: [made],
        TOPOLOGY: [make_topology(run_id=made.run_id)],
        KERNELS: [kernel(made)],
        OUTCOMES: [outcome(made)],
        REWARDS: [reward(made, worth=0.02, worth_half_width=0.01)],
        CHECKPOINTS: [checkpoint(3), checkpoint(3, status=CheckpointStatus.ROLLED_BACK, time_ms=TIME_MS + 5)],
    }
    (row,) = joined(tmp_path, content)
    wanted = {
        "run_id": made.run_id, "decision_id": made.decision_id, "task": "test", "step": 10, "type": "load_kernel",
        "proposed_type": "load_kernel", "vetoed": False, "probability": 0.75, "legal_actions": 2,
        "kernel_status": "compiled", "kernel_parameters": 48,
        "outcome_status": "executed", "outcome_step": 12, "outcome_time": time(TIME_MS), "outcome_loss_before": 1.5,
        "outcome_loss_after": 1.25, "outcome_latency_ms_before": None, "outcome_parameters_after": 148.0,
        "reward": 0.25, "reward_accuracy_improvement": 0.5, "reward_speed_improvement": None,
        "reward_short_term": 0.3, "reward_long_term": None, "reward_immediate": None, "reward_worth": 0.02,
        "policy_time": time(TIME_MS), "policy_status": "rolled_back",
    }  # fmt: skip
    assert {name: row[name] for name in wanted} == wanted


def test_a_decision_without_anything_about_it(tmp_path: Path) -> None:
    made = decision("d", vetoes=[Veto(by="control", reason="paused"), Veto(by="safety_monitor", reason="loss")])
    (row,) = joined(tmp_path, {DECISIONS: [made]})
    assert (row["vetoed"], row["vetoed_by"]) == (True, ["control", "safety_monitor"])
    assert row["veto_reasons"] == ["paused", "loss"]
    later = [name for name in SCHEMA.names if name.startswith(("kernel_s", "outcome_", "reward", "policy_t", "task"))]
    assert {row[name] for name in later} == {None}


def test_records_under_one_id_count_once(tmp_path: Path) -> None:
    made = decision("d")
    content: Content = {
        DECISIONS: [made, decision("other"), made],
        OUTCOMES: [outcome(made), outcome(made)],
        KERNELS: [kernel(made), kernel(made)],
        REWARDS: [reward(made, 1, total=0.5, complete=True), reward(made, 0, total=0.1), reward(made, 1, total=0.5)],
    }
    rows = joined(tmp_path, content)
    assert [row["decision_id"] for row in rows] == [made.decision_id, decision_id("other")]
    assert (rows[0]["reward"], rows[0]["reward_revision"], rows[0]["reward_complete"]) == (0.5, 1, True)
    assert rows[1]["reward"] is None


def test_the_orders_about_a_policy_are_no_release(tmp_path: Path) -> None:
    messages = as_messages(DECISIONS, [decision("d", policy_version=3)])
    order = as_messages(CHECKPOINTS, [checkpoint(3)], key=policy_orders_key("tamiyo").encode())
    make_recording(tmp_path, [*messages, *order])
    assert decisions(recording=tmp_path).column("policy_status").to_pylist() == [None]


def test_a_version_of_two_policies_is_not_known(tmp_path: Path) -> None:
    content: Content = {
        DECISIONS: [decision("d", policy_version=3), decision("e", policy_version=4)],
        CHECKPOINTS: [checkpoint(3), checkpoint(3, name="other"), checkpoint(4)],
    }
    assert [row["policy_status"] for row in joined(tmp_path, content)] == [None, "released"]


def test_results_after_until_count_for_decisions_before_it(tmp_path: Path) -> None:
    first, second = decision("a"), decision("b")
    late = as_messages(OUTCOMES, [outcome(first)], timestamp_ms=TIME_MS + 10**6)
    make_recording(tmp_path, [*as_messages(DECISIONS, [first, second]), *late])
    table = decisions(recording=tmp_path, until=time(TIME_MS + 500))
    assert table.select(["decision_id", "outcome_status"]).to_pylist() == [
        {"decision_id": first.decision_id, "outcome_status": "executed"}
    ]


def test_a_recording_without_other_topics_has_null_for_them(tmp_path: Path) -> None:
    made = as_messages(DECISIONS, [decision("d")])
    make_recording(tmp_path, made, selection=Selection(topics=(DECISIONS.name,)))
    assert decisions(recording=tmp_path, columns=["reward", "type"]).to_pylist() == [
        {"reward": None, "type": "load_kernel"}
    ]
    assert DECISIONS not in OTHERS


def test_a_sampled_action_without_a_probability(tmp_path: Path) -> None:
    outside = decision("d").model_copy(update={"action_index": 2**40})
    (row,) = joined(tmp_path, {DECISIONS: [outside]})
    assert row["probability"] is None


@pytest.mark.parametrize("revisions", [1, 5])
def test_newest_rows_keep_the_highest_rank_of_each_id(revisions: int) -> None:
    import pyarrow as pa

    rows = NewestRows(pa.schema([("number", pa.int64()), ("text", pa.string())]))
    ids = CHUNK + 10
    for revision in range(revisions):
        for number in range(ids):
            if number != 77 or revision == 0:  # its row is moved when replaced rows are dropped
                rows.add(f"id-{number}", (number * 10 + revision, f"{number}"), rank=revision)
            rows.add(f"id-{number}", (-1, "older"), rank=-1)
    assert len(rows) == ids
    last = revisions - 1
    found = rows.take([f"id-{ids - 1}", "id-0", "unknown", "id-77"]).to_pylist()
    assert [each["number"] for each in found] == [(ids - 1) * 10 + last, last, None, 770]
    assert [each["text"] for each in found] == [f"{ids - 1}", "0", None, "77"]
    assert sum(chunk.num_rows for chunk in rows._chunks) <= 3 * ids
