"""Records of a run for the watch page's tests, and a history fed with them."""

from collections.abc import Iterable
from typing import Any

from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, CompiledKernel, KernelStatus
from tamiyo.schemas.identity import decision_id, identity, kernel_id, outcome_id
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, RewardAnalysis, SpanReward
from tamiyo.schemas.record import Record
from tamiyo.schemas.telemetry import ErrorRecoveryEvent, LayerHealth, ModelPerformance
from tamiyo.streams.watch.history import History, Observed
from tests.support import runs

NOW_MS = 1_700_000_100_000


def history(records: Iterable[tuple[int, Record]] = (), **bounds: Any) -> History:
    """Return a history with records, each with its Kafka time, whose clock stands still."""
    made = History(clock=lambda: NOW_MS, **bounds)
    made.take(Observed.of(record, time_ms) for time_ms, record in records)
    return made


def performance(step: int, *, run_id: str = "run-1", **fields: Any) -> ModelPerformance:
    """A frame whose losses fall with the step."""
    loss = 2.0 / (1 + step / 100)
    values = {"train_loss": loss, "validation_loss": loss + 0.1, "parameters": 600, "base_parameters": 500, **fields}
    return ModelPerformance(run_id=run_id, step=step, time_ms=1_000 + step, **values)


def layer_health(step: int, *, run_id: str = "run-1", layers: int = 2, **fields: Any) -> LayerHealth:
    """A frame of layers "layer.0" and up."""
    zeros = {
        name: [0] * layers
        for name in (
            "update_ratio", "kernel_load", "alpha", "active_seeds", "fossilized_seeds", "error_seeds", "parameters",
            "kernel_parameters",
        )
    }  # fmt: skip
    values: dict[str, Any] = {
        **zeros,
        "layer_id": [f"layer.{number}" for number in range(layers)],
        "gradient_norm": [0.5] * layers,
        "growth_score": [None] * layers,
        "contribution": [None] * layers,
        "dormant_seeds": [4] * layers,
        "learning_rate_scale": [1.0] * layers,
        **fields,
    }
    return LayerHealth(run_id=run_id, step=step, time_ms=1_000 + step, **values)


def decision(name: str = "d1", step: int = 100, *, run_id: str = "run-1", **fields: Any) -> AdaptationDecision:
    """A decision to load a kernel, unless its type is another."""
    return runs.decision(name, step=step, time_ms=1_000 + step, **{"run_id": run_id, **fields})


def outcome(of: AdaptationDecision, status: str = "executed", **fields: Any) -> AdaptationOutcome:
    """The outcome of a decision, a step later."""
    values = {"step": of.step + 1, "reason": "" if status == "executed" else "planted", "kernel_id": of.kernel_id}
    return AdaptationOutcome(
        run_id=of.run_id, outcome_id=outcome_id(of.decision_id), decision_id=of.decision_id, time_ms=of.time_ms + 1,
        type=of.type, layer_id=of.layer_id, blueprint=of.blueprint, status=status, **(values | fields),
    )  # fmt: skip


def kernel(of: AdaptationDecision, status: KernelStatus = KernelStatus.COMPILED, **fields: Any) -> CompiledKernel:
    """The kernel of a decision."""
    return CompiledKernel(
        run_id=of.run_id, kernel_id=kernel_id(of.decision_id), decision_id=of.decision_id, layer_id=of.layer_id or "0",
        blueprint=of.blueprint or "low_rank", status=status, parameters=77, **fields,
    )  # fmt: skip


def reward(of: AdaptationDecision, revision: int = 0, total: float = 0.25, **fields: Any) -> RewardAnalysis:
    """A revision of a decision's reward."""
    components, weights = {"accuracy": 0.5, "cost": 0.2}, {"accuracy": 1.0, "cost": -0.3}
    span = SpanReward(name="immediate", weight=0.4, start=0, end=50, seen=True, windows=1, components=components)
    values: dict[str, Any] = {"worth": 0.02, "worth_half_width": 0.01, "complete": False, **fields}
    return RewardAnalysis(
        run_id=of.run_id, analysis_id=identity("analysis", of.decision_id, revision), decision_id=of.decision_id,
        revision=revision, step=of.step, time_ms=of.time_ms + 50 * revision, action=of.proposed, status="executed",
        components=components, weights=weights, spans=[span], total=total, confidence=0.5, **values,
    )  # fmt: skip


def error(step: int, *, run_id: str = "run-1", **fields: Any) -> ErrorRecoveryEvent:
    """An error of a kernel."""
    values: dict[str, Any] = {"error_type": "non_finite", "strategy": "reset", "success": True, **fields}
    return ErrorRecoveryEvent(
        run_id=run_id, step=step, time_ms=1_000 + step, layer_id="layer.0", seed_id=0, recovery_time_ms=1.0, **values
    )


def checkpoint(version: int, **fields: Any) -> PolicyCheckpoint:
    """The announcement of a version."""
    values: dict[str, Any] = {
        "name": "tamiyo", "parent_version": version - 1 if version else None, "time_ms": 1_000 * (version + 1),
        "status": CheckpointStatus.RELEASED, "file": f"policy-{version}", "checksum": "", "size_bytes": 10,
        "feature_version": 1, "blueprints": [], "offsets": {}, **fields,
    }  # fmt: skip
    return PolicyCheckpoint(version=version, **values)


DECISION_ID = decision_id("d1")
