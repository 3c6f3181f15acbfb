"""A run's records for the rewards stage: windows, graphs, decisions and outcomes, in the order of the flow."""

import math
from typing import Any

from tamiyo.schemas.adaptation import Action, AdaptationDecision, AdaptationOutcome, OutcomeStatus
from tamiyo.schemas.analysis import HealthWindow, ModelGraph
from tamiyo.schemas.identity import decision_id, graph_id, outcome_id
from tamiyo.schemas.record import Tensor
from tamiyo.schemas.topics import DECISIONS, GRAPHS, OUTCOMES, REWARDS, WINDOWS
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
