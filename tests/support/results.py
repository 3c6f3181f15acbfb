"""Factories: what becomes of decisions, and policies that were learned from it."""

from typing import Any

from tamiyo.schemas.adaptation import Action, AdaptationOutcome
from tamiyo.schemas.learning import PolicyCheckpoint, RewardAnalysis
from tests.support.telemetry import BEGAN_MS


def reward(**more: Any) -> RewardAnalysis:
    """Return the reward of an executed adaptation."""
    values: dict[str, Any] = {
        "run_id": "run",
        "analysis_id": "a" * 32,
        "decision_id": "d" * 32,
        "revision": 1,
        "step": 400,
        "time_ms": BEGAN_MS,
        "action": Action(type="load_kernel", layer_id="features.0", blueprint="low_rank"),
        "status": "executed",
        "components": {"accuracy": 0.1},
        "weights": {"accuracy": 1.0},
        "spans": [],
        "total": -0.125,
        "confidence": 0.5,
        "worth": 0.0123456,
        "complete": True,
    }
    return RewardAnalysis(**values | more)


def outcome(**more: Any) -> AdaptationOutcome:
    """Return the outcome of an executed adaptation."""
    values: dict[str, Any] = {
        "run_id": "run",
        "outcome_id": "o" * 32,
        "decision_id": "d" * 32,
        "step": 401,
        "time_ms": BEGAN_MS,
        "type": "load_kernel",
        "layer_id": "features.0",
        "status": "executed",
        "before": {"loss": 0.5},
        "after": {"loss": 0.4999},
    }
    return AdaptationOutcome(**values | more)


def checkpoint(**more: Any) -> PolicyCheckpoint:
    """Return a released policy."""
    values: dict[str, Any] = {
        "name": "tamiyo",
        "version": 12,
        "time_ms": BEGAN_MS,
        "status": "released",
        "file": "f",
        "checksum": "c",
        "size_bytes": 1,
        "feature_version": 1,
        "blueprints": [],
        "offsets": {},
    }
    return PolicyCheckpoint(**values | more)
