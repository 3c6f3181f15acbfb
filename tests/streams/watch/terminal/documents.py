"""Documents of the views, as they are made of a history."""

import math
from typing import Any

NOW_MS = 1_800_000_000_000
HEAD: dict[str, Any] = {
    "revision": 123,
    "whole": True,
    "now_ms": NOW_MS,
    "source": {
        "kind": "topics", "name": "127.0.0.1:9092", "prefix": "", "live": True, "from_ms": NOW_MS - 86_400_000,
        "to_ms": NOW_MS, "records": 12_345, "total": 12_345, "reading": False, "undecodable": 0, "problem": None,
    },
}  # fmt: skip
COMPONENTS = {
    "accuracy_improvement": (0.4, 1.0), "speed_improvement": (-0.05, 0.6), "memory_efficiency": (-0.02, 0.4),
    "stability_improvement": (0.1, 0.8), "adaptation_cost": (0.3, -0.3), "risk_penalty": (0.05, -0.5),
}  # fmt: skip


def row(run_id: str = "mnist1d-0", **more: Any) -> dict[str, Any]:
    """Return a run of a fleet document."""
    values: dict[str, Any] = {
        "run_id": run_id, "task": "mnist1d", "state": "training", "step": 1_200, "planned_steps": 3_000,
        "attached_ms": NOW_MS - 600_000, "time_ms": NOW_MS - 2_000, "train_loss": 0.41, "train_accuracy": 0.86,
        "validation_loss": 0.5123, "validation_accuracy": 0.82,
        "sparkline": [2.3 * math.exp(-0.05 * each) for each in range(40)], "parameters": 12_500,
        "base_parameters": 12_000, "overhead_ratio": 0.034, "decisions": 40, "adaptations": 3, "vetoed": 2,
        "last_adaptation": {"step": 900, "type": "load_kernel", "layer_id": "features.3"}, "last_reward": 0.31,
        "last_worth": 0.012, "worth": 0.034, "dropped_records": 0,
    }  # fmt: skip
    return values | more


def fleet(*rows: dict[str, Any]) -> dict[str, Any]:
    """Return a fleet document."""
    return {"view": "fleet", **HEAD, "runs": list(rows or (row(),)), "removed": []}


def decision_row(number: int = 1, **more: Any) -> dict[str, Any]:
    """Return a decision of a run document: an executed and rewarded adaptation."""
    values: dict[str, Any] = {
        "decision_id": f"{number:032x}"[::-1], "step": 100 * number, "time_ms": NOW_MS - 500_000 + 1_000 * number,
        "type": "load_kernel", "layer_id": "features.3", "blueprint": "parallel_expansion",
        "kernel_id": f"{number + 1000:032x}"[::-1],
        "proposed": {"type": "load_kernel", "layer_id": "features.3", "blueprint": "parallel_expansion"},
        "vetoed_by": [], "dry_run": False, "confidence": 0.83, "uncertainty": 0.17, "urgency": 0.4,
        "predicted_reward": 0.2, "policy_version": 12, "method": "policy", "status": "executed", "reason": "",
        "outcome_step": 100 * number + 1, "reward": 0.3095, "reward_complete": True, "worth": 0.0123,
        "worth_half_width": 0.004,
    }  # fmt: skip
    return values | more


def no_op(number: int, **more: Any) -> dict[str, Any]:
    """Return a decision to do nothing."""
    idle = {"type": "no_op", "layer_id": None, "blueprint": None}
    return decision_row(
        number, **{**idle, "kernel_id": None, "proposed": idle, "status": "none", "outcome_step": None, "reward": None,
        "reward_complete": False, "worth": None, "worth_half_width": None, **more},
    )  # fmt: skip


def run(**more: Any) -> dict[str, Any]:
    """Return a run document: 12 decisions, of which one was vetoed and one refused."""
    steps = list(range(0, 1_200, 4))
    losses = [0.4 + 2 * math.exp(-each / 300) for each in steps]
    decisions = [
        no_op(1), decision_row(2), no_op(3),
        no_op(
            4, vetoed_by=["uncertainty"], status="vetoed", reward=-0.05,
            proposed={"type": "unload_kernel", "layer_id": "features.0", "blueprint": None},
        ),
        decision_row(5, status="refused", reason="the layer is protected", outcome_step=501, reward=-0.05, worth=None),
        *(no_op(each) for each in range(6, 11)),
        decision_row(11, type="fossilize_kernel", blueprint=None, status="pending", reward=None, worth=None),
    ]  # fmt: skip
    values: dict[str, Any] = {
        "view": "run", **HEAD,
        "run": row(
            topology_id="t", cooldown_steps=200, parameter_budget=6_000, memory_bytes=2_345_678, throughput=10_240.0,
            step_time_ms=3.21,
            orders={
                "paused": False, "dry_run": True, "protected_layers": ["head"], "issued_by": "ops", "reason": "spike"
            },
        ),
        "series": {
            "replace": True, "step": steps, "time_ms": [NOW_MS - 1_000 * (1_200 - each) for each in steps],
            "train_loss": losses,
            "validation_loss": [each + 0.1 if n % 10 == 0 else None for n, each in enumerate(losses)],
            "validation_accuracy": [None] * len(steps), "parameters": [12_000] * len(steps),
        },
        "decisions": decisions,
        "projections": [{"decision_id": decisions[1]["decision_id"], "step": [200, 500, 800], "loss": [1.6, 0.9, 0.7]}],
        "topology": {"nodes": [], "edges": []},
        "layers": {
            "step": 1_196, "layer_id": ["features.0", "features.3", "head"], "health": [0.95, 0.42, 0.99],
            "problematic": [False, True, False], "growth_score": [0.01, 0.2, None], "contribution": [None, 0.03, None],
            "gradient_norm": [0.3, 0.9, 0.1], "update_ratio": [1e-3, 2e-3, 1e-4], "dormant_seeds": [4, 2, 4],
            "active_seeds": [0, 1, 0], "fossilized_seeds": [0, 1, 0], "error_seeds": [0, 0, 0], "alpha": [0, 1, 0],
            "kernel_parameters": [0, 500, 0], "learning_rate_scale": [1, 0.5, 1],
        },
        "heat": None,
        "kernels": [
            {"kernel_id": f"{each:032x}"[::-1], "layer_id": "features.3", "blueprint": "parallel_expansion",
             "decision_id": f"{each:032x}", "parameters": 250, "status": status, "reason": "", "requested_step": 200,
             "active_step": 201, "fossilized_step": None, "ended_step": None}
            for each, status in enumerate(["active", "unloaded", "refused", "fossilized", "unloaded"])
        ],
        "errors": [
            {"step": 333, "time_ms": NOW_MS, "layer_id": "features.3", "kernel_id": "k", "error_type": "non_finite",
             "message": "an output was not finite", "strategy": "reset", "success": True}
        ],
    }  # fmt: skip
    return values | more


def decision(number: int = 2, **more: Any) -> dict[str, Any]:
    """Return the document of an executed and rewarded decision."""
    kinds = ["load_kernel:low_rank", "load_kernel:parallel_expansion", "unload_kernel"]
    chosen = decision_row(number)
    actions = [
        {"type": kind.partition(":")[0], "layer_id": layer, "blueprint": kind.partition(":")[2] or None, "kind": kind,
         "probability": 0.5 / (place + 1) if legal else 0.0, "legal": legal, "chosen": place == 1}
        for place, (layer, kind, legal) in enumerate(
            (layer, kind, layer != "head")
            for layer in ("features.0", "features.3", "head", *"abcdef")
            for kind in kinds
        )
    ]  # fmt: skip
    waterfall = [
        {"component": name, "value": value, "weight": weight, "contribution": value * weight}
        for name, (value, weight) in COMPONENTS.items()
    ]
    total = sum(each["contribution"] for each in waterfall)
    reward = {
        "revision": 1, "time_ms": NOW_MS, "step": 200, "status": "executed", "total": math.tanh(total),
        "confidence": 0.9, "improvement": 0.034, "predicted_reward": 0.2, "worth": 0.0123, "worth_half_width": 0.004,
        "estimator": "forest-3", "complete": True,
        "explanation": "Loading parallel_expansion lowered the loss by 3.4%.",
        "spans": [
            {"name": "immediate", "weight": 0.3, "start": 0, "end": 50, "seen": True, "windows": 5, "components": {},
             "total": 0.2},
            {"name": "long_term", "weight": 0.1, "start": 500, "end": None, "seen": False, "windows": 0,
             "components": {}, "total": 0.0},
        ],
        "components": {each["component"]: each["value"] for each in waterfall},
        "weights": {each["component"]: each["weight"] for each in waterfall}, "waterfall": waterfall, "sum": total,
    }  # fmt: skip
    values: dict[str, Any] = {
        "view": "decision", **HEAD, "run_id": "mnist1d-0",
        "decision": {
            **chosen, "graph_id": "g" * 32, "entropy": 1.234, "log_probability": -0.7, "temperature": 1.0, "value": 0.1,
            "seed": 17, "explanation": "The layer's gradient is twice its neighbours'.", "vetoes": [],
            "orders": {"*": NOW_MS},
        },
        "actions": actions, "actions_left_out": 3, "layers": [], "kinds": kinds,
        "kernel": {
            "status": "compiled", "reason": "", "parameters": 250, "size_bytes": 1_234, "compile_time_ms": 12.3
        },
        "outcome": {
            "step": 201, "time_ms": NOW_MS, "status": "executed", "reason": "",
            "before": {"loss": 0.5, "parameters": 1}, "after": {"loss": 0.49}, "duration_ms": 12.5,
        },
        "rewards": [{**reward, "revision": 0, "total": 0.1, "complete": False}, reward], "details_kept": True,
    }  # fmt: skip
    return values | more
