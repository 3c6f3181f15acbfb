"""Documents of the watch page, as the server sends them, with made-up numbers that are the same at each call."""

import math
import random
from itertools import pairwise
from typing import Any

Document = dict[str, Any]

START_MS = 1_790_000_000_000
HOSTILE = '<img src=x onerror="window.hacked=1">\u202e\u2066evil\u200f' + "x" * 160
"""A text that would become an element, turns the direction of what follows it, and is long."""
STATES = ("training", "training", "training", "paused", "finished", "silent")
TASKS = ("digits-mlp", "mnist1d-conv", "language-small")
BLUEPRINTS = ("low_rank", "parallel_expansion", "residual_mlp", "attention_gate")
LAYERS = ("conv1", "conv2", "block.0.fc", "block.1.fc", "head.norm", "head.fc")
KINDS = [*(f"load_kernel:{name}" for name in BLUEPRINTS), "unload_kernel", "fossilize_kernel", "optimize_parameters"]
WEIGHTS = {
    "accuracy_improvement": 1.0,
    "speed_improvement": 0.6,
    "memory_efficiency": 0.4,
    "stability_improvement": 0.8,
    "adaptation_cost": -0.3,
    "risk_penalty": -0.5,
}


def source(**fields: Any) -> Document:
    """Return a live source's state."""
    values = {
        "kind": "topics",
        "name": "127.0.0.1:9092",
        "prefix": "",
        "live": True,
        "from_ms": START_MS,
        "to_ms": START_MS + 3_600_000,
        "records": 123_456,
        "total": None,
        "reading": False,
        "undecodable": 0,
        "problem": None,
    }
    return {**values, **fields}


def document(view: str, revision: int = 1, *, whole: bool = True, **fields: Any) -> Document:
    """Return a document of a view."""
    shared = {"view": view, "revision": revision, "whole": whole, "now_ms": START_MS + 3_600_000}
    return {**shared, "source": source(), **fields}


def row(index: int, step: int | None = None, **fields: Any) -> Document:
    """Return a run of the fleet."""
    chance = random.Random(index)
    done = chance.randrange(50, 5000) if step is None else step
    curve = [2.3 * math.exp(-at / 12) + 0.3 + 0.05 * chance.random() for at in range(40)]
    state = STATES[index % len(STATES)]
    adapted = chance.randrange(0, 12)
    values = {
        "run_id": f"run-{index:04d}",
        "task": TASKS[index % len(TASKS)],
        "state": state,
        "step": 5000 if state == "finished" and step is None else done,
        "planned_steps": 5000 if index % 7 else None,
        "attached_ms": START_MS,
        "time_ms": START_MS + 3_600_000 - (0 if state == "training" else 2_400_000),
        "train_loss": curve[-1] - 0.05,
        "train_accuracy": 0.9,
        "validation_loss": curve[-1] if index % 5 else None,
        "validation_accuracy": 0.88,
        "sparkline": curve,
        "parameters": 120_000 + 4_000 * adapted,
        "base_parameters": 120_000,
        "overhead_ratio": 0.013,
        "decisions": 40 + adapted,
        "adaptations": adapted,
        "vetoed": chance.randrange(0, 4),
        "last_adaptation": {"step": 400, "type": "load_kernel", "layer_id": "conv2"} if adapted else None,
        "last_reward": chance.uniform(-0.3, 0.6) if adapted else None,
        "last_worth": chance.uniform(-0.02, 0.1) if adapted else None,
        "worth": chance.uniform(-0.05, 0.3) if adapted else None,
        "dropped_records": 0,
    }
    return {**values, **fields}


def fleet(runs: int = 60) -> Document:
    """Return a fleet of runs."""
    return document("fleet", runs=[row(index) for index in range(runs)], removed=[])


def decision_row(index: int, **fields: Any) -> Document:
    """Return a decision of a run; every fifth one proposes an adaptation."""
    chance = random.Random(1000 + index)
    layer, blueprint = LAYERS[index % len(LAYERS)], BLUEPRINTS[index % len(BLUEPRINTS)]
    statuses = ("executed", "executed", "executed", "vetoed", "refused", "executed", "pending", "dry_run")
    status = statuses[index // 5 % len(statuses)] if index % 5 == 0 else "none"
    acts = status not in {"none", "vetoed"}
    proposed = {"type": "load_kernel", "layer_id": layer, "blueprint": blueprint}
    nothing = {"type": "no_op", "layer_id": None, "blueprint": None}
    rewarded = status not in {"pending", "dry_run"}
    executed = status == "executed"
    values = {
        "decision_id": f"{index:04x}c0ffee5eed{index:06x}",
        "step": 25 * (index + 1),
        "time_ms": START_MS + 60_000 * index,
        **(proposed if acts else nothing),
        "kernel_id": f"kernel-{index}" if acts else None,
        "proposed": nothing if status == "none" else proposed,
        "vetoed_by": ["safety_monitor", "uncertainty"] if status == "vetoed" else [],
        "dry_run": status == "dry_run",
        "confidence": chance.uniform(0.5, 0.95),
        "uncertainty": chance.uniform(0.05, 0.5),
        "urgency": chance.random(),
        "predicted_reward": chance.uniform(-0.1, 0.4),
        "policy_version": 1 + index // 20,
        "method": "policy",
        "status": status,
        "reason": "the parameter budget is used up" if status == "refused" else "",
        "outcome_step": 25 * (index + 1) + 2 if executed else None,
        "reward": (chance.uniform(-0.2, 0.6) if acts else 0.0) if rewarded else None,
        "reward_complete": index % 3 != 0,
        "worth": chance.uniform(-0.02, 0.1) if executed else None,
        "worth_half_width": 0.03 if executed else None,
    }
    return {**values, **fields}


def run(run_id: str = "run-0001", *, steps: int = 1000, decisions: int = 40) -> Document:
    """Return a run with curves, a graph of layers, a heat map, kernels and decisions."""
    chance = random.Random(run_id)
    at = list(range(5, steps + 1, 5))
    loss = [2.0 * math.exp(-step / 250) + 0.35 + 0.03 * chance.random() for step in at]
    made = [decision_row(index) for index in range(decisions)]
    executed = [each for each in made if each["status"] == "executed"]
    count = len(LAYERS)
    heat_steps = at[::4]
    stages = ("active", "fossilized", "unloaded", "active", "loading")
    orders = {"paused": False, "dry_run": True, "protected_layers": ["conv1"], "issued_by": "ann", "reason": "a trial"}
    return document(
        "run",
        run={
            **row(1, steps, run_id=run_id, state="training", planned_steps=5000, validation_loss=loss[-1] + 0.04),
            "topology_id": "0123456789abcdef",
            "cooldown_steps": 50,
            "parameter_budget": 60_000,
            "memory_bytes": 734_003_200,
            "throughput": 12_345.6,
            "step_time_ms": 8.25,
            "orders": orders,
        },
        series={
            "replace": True,
            "step": at,
            "time_ms": [START_MS + 3_000 * step for step in at],
            "train_loss": loss,
            "validation_loss": [value + 0.04 if index % 4 == 0 else None for index, value in enumerate(loss)],
            "validation_accuracy": [1 - value / 3 if index % 4 == 0 else None for index, value in enumerate(loss)],
            "parameters": [120_000 + 4_000 * (step // 200) for step in at],
        },
        decisions=made,
        projections=[
            {
                "decision_id": each["decision_id"],
                "step": list(range(each["step"], min(steps, each["step"] + 300), 10)),
                "loss": [
                    2.0 * math.exp(-step / 300) + 0.45
                    for step in range(each["step"], min(steps, each["step"] + 300), 10)
                ],
            }
            for each in executed
        ],
        topology={
            "nodes": [
                {"layer_id": name, "type": "Linear", "parameters": 20_000, "seeds": 4, "protected": index == 0}
                for index, name in enumerate(LAYERS)
            ],
            "edges": [
                {"source": source_id, "target": target, "kind": "data"}
                for source_id, target in [*pairwise(LAYERS), (LAYERS[1], LAYERS[4])]
            ],
        },
        layers={
            "step": steps,
            "layer_id": list(LAYERS),
            "health": [0.95, 0.8, 0.35, 0.7, 0.99, 0.55],
            "problematic": [False, False, True, False, False, False],
            "growth_score": [0.1, 0.4, 1.7, None, 0.2, 0.9],
            "contribution": [None, 0.02, 0.1, None, None, -0.01],
            "gradient_norm": [0.5, 0.1, 0.004, 0.08, 0.3, 1.2],
            "update_ratio": [1e-3] * count,
            "dormant_seeds": [4, 2, 1, 3, 4, 2],
            "active_seeds": [0, 1, 2, 1, 0, 1],
            "fossilized_seeds": [0, 1, 1, 0, 0, 1],
            "error_seeds": [0, 0, 1, 0, 0, 0],
            "alpha": [0.0, 1.0, 0.7, 1.0, 0.0, 1.0],
            "kernel_parameters": [0, 4_000, 8_000, 4_000, 0, 4_000],
            "learning_rate_scale": [1.0, 1.0, 0.5, 1.0, 1.0, 1.0],
        },
        heat={
            "replace": True,
            "layer_id": list(LAYERS),
            "step": heat_steps,
            "health": [[0.5 + 0.5 * math.sin(step / 90 + layer) for layer in range(count)] for step in heat_steps],
            "gradient_norm": [[10 ** -(layer + chance.random()) for layer in range(count)] for _ in heat_steps],
            "growth_score": [
                [layer * step / 1000 if layer != 3 else None for layer in range(count)] for step in heat_steps
            ],
        },
        kernels=[
            {
                "kernel_id": f"kernel-{index}",
                "layer_id": each["layer_id"],
                "blueprint": each["blueprint"],
                "decision_id": each["decision_id"],
                "parameters": 4_000,
                "status": stages[index % len(stages)],
                "reason": "",
                "requested_step": each["step"],
                "active_step": None if stages[index % 5] == "loading" else each["step"] + 20,
                "fossilized_step": each["step"] + 150 if stages[index % 5] == "fossilized" else None,
                "ended_step": each["step"] + 120 if stages[index % 5] == "unloaded" else None,
            }
            for index, each in enumerate(executed)
        ],
        errors=[
            {
                "step": 300,
                "time_ms": START_MS + 900_000,
                "layer_id": "block.0.fc",
                "kernel_id": "kernel-0",
                "error_type": "non_finite",
                "message": "the output of the kernel is not finite",
                "strategy": "fallback",
                "success": True,
            }
        ],
    )


def reward(revision: int, *, complete: bool = False) -> Document:
    """Return a revision of a reward."""
    values = {name: 0.05 * (revision + 1) * (order + 1) for order, name in enumerate(WEIGHTS)}
    waterfall = [
        {"component": name, "value": values[name], "weight": weight, "contribution": values[name] * weight}
        for name, weight in WEIGHTS.items()
    ]
    total = sum(step["contribution"] for step in waterfall)
    spans = [("immediate", 0, 25), ("short_term", 25, 100), ("medium_term", 100, 400), ("long_term", 400, None)]
    return {
        "revision": revision,
        "time_ms": START_MS + 60_000 * (revision + 1),
        "step": 100,
        "status": "executed",
        "total": math.tanh(total),
        "confidence": 0.3 + 0.1 * revision,
        "improvement": 0.034,
        "predicted_reward": 0.2,
        "worth": 0.042,
        "worth_half_width": 0.03,
        "estimator": "twins-3",
        "complete": complete,
        "explanation": "Loading low_rank at layer block.0.fc lowered the loss by 3.4% relative to the projected trend.",
        "spans": [
            {
                "name": name,
                "weight": 0.25,
                "start": start,
                "end": end,
                "seen": order <= revision,
                "windows": 3,
                "components": values,
                "total": total,
            }
            for order, (name, start, end) in enumerate(spans)
        ],
        "components": values,
        "weights": dict(WEIGHTS),
        "waterfall": waterfall,
        "sum": total,
    }


def decision(index: int = 10, run_id: str = "run-0001", **fields: Any) -> Document:
    """Return a decision with its probabilities, outcome and rewards."""
    chosen = decision_row(index)
    actions = [{"type": "no_op", "layer_id": None, "blueprint": None, "kind": "no_op", "legal": True, "chosen": False}]
    for layer in LAYERS:
        for kind in KINDS:
            name, _, blueprint = kind.partition(":")
            made = {"type": name, "layer_id": layer, "blueprint": blueprint or None, "kind": kind}
            picked = made["layer_id"] == chosen["layer_id"] and made["blueprint"] == chosen["blueprint"]
            actions.append({**made, "legal": layer != "conv1", "chosen": picked and name == "load_kernel"})
    legal = [action for action in actions if action["legal"]]
    for order, action in enumerate(sorted(legal, key=lambda action: not action["chosen"])):
        action["probability"] = 0.5 ** (order + 1) if order < 12 else 0.0
    for action in actions:
        action.setdefault("probability", 0.0)
    actions.sort(key=lambda action: (-action["probability"], not action["legal"]))
    values = {
        "run_id": run_id,
        "decision": {
            **chosen,
            "graph_id": "fedcba9876543210fedcba9876543210",
            "entropy": 1.37,
            "log_probability": -0.69,
            "temperature": 1.0,
            "value": 0.12,
            "seed": 42,
            "explanation": "The health of block.0.fc fell for three windows while its growth score rose.",
            "vetoes": [{"by": by, "reason": "the ensemble disagrees"} for by in chosen["vetoed_by"]],
            "orders": {"*": START_MS},
        },
        "actions": actions,
        "actions_left_out": 0,
        "layers": list(LAYERS),
        "kinds": KINDS,
        "kernel": {
            "status": "compiled",
            "reason": "",
            "parameters": 4000,
            "size_bytes": 17_000,
            "compile_time_ms": 12.5,
        },
        "outcome": {
            "step": 277,
            "time_ms": START_MS + 61_000,
            "status": "executed",
            "reason": "",
            "before": {"loss": 0.91, "latency_ms": 0.8, "parameters": 120_000},
            "after": {"loss": 0.9, "latency_ms": 0.95, "parameters": 124_000},
            "duration_ms": 21.0,
        },
        "rewards": [reward(0), reward(1), reward(2, complete=True)],
        "details_kept": True,
    }
    return document("decision", **{**values, **fields})


def policy(versions: int = 8) -> Document:
    """Return a policy with its versions."""
    chance = random.Random(5)
    made = []
    for version in range(1, versions + 1):
        rolled = version == 5
        made.append(
            {
                "version": version,
                "parent_version": version - 1 if version > 1 else None,
                "time_ms": START_MS + 400_000 * version,
                "status": "rolled_back" if rolled else "released",
                "fallback_version": 4 if rolled else None,
                "experiences": 1_500 * version,
                "updates": 12 * version,
                "size_bytes": 2_300_000,
                "reason": "live rewards are lower than those of version 4" if rolled else "",
                "issued_by": "",
                "losses": {
                    "policy_loss": -0.01 * version,
                    "value_loss": 0.3 / version,
                    "reward_loss": 0.2 / version,
                    "entropy": 1.5 - 0.1 * version,
                    "approx_kl": 0.01 * chance.random(),
                    "clipfrac": 0.1 * chance.random(),
                },
                "charts": {"coverage": 0.9 - 0.02 * chance.random(), "learning_rate": 3e-4, "mean_reward": 0.1},
                "gates": {
                    "passed": ["finite", "close", "golden"],
                    "failed": {"off_policy": 2} if version % 3 == 0 else {},
                },
                "decisions": 200 if version < versions else 14,
                "executed": 31,
                "mean_reward": 0.05 + 0.02 * version if version < versions else None,
                "reward_half_width": 0.04 if version < versions else None,
                "mean_worth": 0.01,
                "mean_confidence": 0.8,
            }
        )
    orders = {"pinned_version": None, "frozen": True, "issued_by": "ann", "reason": "a release is under test"}
    return document("policy", policies=[{"name": "tamiyo", "orders": orders, "versions": made}])


def installation() -> Document:
    """Return an installation with a stage that lags, dead letters and an order."""
    names = ["telemetry.model.performance_metrics", "tamiyo.health.windows", "tamiyo.adaptation.decisions"]
    stages = ["intake", "windows", "graphs", "decisions", "kernels", "rewards"]
    return document(
        "installation",
        topics=[
            {
                "name": name,
                "description": "Measurements of the whole model.",
                "writer": "host",
                "readers": ["intake", "rewards"],
                "partitions": 4,
                "records": 123_456 * (order + 1),
                "rate": 812.5 / (order + 1),
                "newest_ms": START_MS + 3_599_000,
                "dead_letters": 3 if order == 1 else 0,
                "late": 0,
                "oldest_ms": START_MS,
            }
            for order, name in enumerate(names)
        ],
        stages=[
            {
                "stage": stage,
                "group": f"tamiyo-{stage}",
                "lag": 12 * order,
                "lag_by_topic": {names[0]: 12 * order},
                "members": 1,
                "unassigned": [[names[0], 3]] if stage == "rewards" else [],
                "problem": "the group has no members" if stage == "kernels" else None,
            }
            for order, stage in enumerate(stages)
        ],
        shed={"signals": 100_000, "shed": 1_200, "share": 0.0119},
        dead_letters=[
            {"topic": names[0], "time_ms": START_MS + 100_000, "reason": "expected a finite loss", "run_id": "run-0003"}
        ],
        control=[
            {
                "run_id": "*",
                "paused": False,
                "dry_run": True,
                "protected_layers": ["conv1"],
                "issued_by": "ann",
                "reason": "a trial",
                "time_ms": START_MS,
            }
        ],
    )
