"""What is known about an executed adaptation at a moment after it: the inputs of the reward's estimator.

Every value is free of the task's scale where it can be: losses enter as logarithms and ratios, times as shares of the
planned run, parameters as shares of the budget. NaN means unknown, which is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression, median

import numpy as np
import numpy.typing as npt

from tamiyo.models.features import global_value, node_column
from tamiyo.models.heuristic import UNKNOWN_WORTH, WORTH
from tamiyo.schemas.adaptation import AdaptationDecision, AdaptationOutcome, DecisionType
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.streams.stages.rewards.adaptation import ExecutedAdaptation
from tamiyo.streams.stages.rewards.counterfactual import CounterfactualEstimator
from tamiyo.streams.stages.rewards.projection import ProjectionEstimator
from tamiyo.streams.stages.rewards.window_summary import WindowSummary

UNKNOWN = math.nan
FALL_WINDOWS = 6  # whose slope is the present one
MIN_POINTS = 3
PASSES = 3.0  # a training step is a forward pass and a backward pass of twice its time
SMALLEST_LOSS = 1e-6  # nats; below it a logarithm means nothing

_AT_NODE = (
    "growth_share", "log_growth_score", "growth_measured", "depth", "kernel_load", "active_share", "fossilized_share",
    "dead_neuron_ratio", "avg_correlation", "log_update_ratio", "log_learning_rate_scale", "contribution_positive",
    "contribution_negative",
)  # fmt: skip
_OF_NETWORK = (
    "progress", "progress_known", "budget_left", "grown_share", "parameter_growth", "adapted", "loss_gap",
    "validation_accuracy", "validation_loss_trend", "train_loss_trend", "log_layers", "windows_seen",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """An executed adaptation and what the run has shown since."""

    decision: AdaptationDecision
    graph: ModelGraph
    """The graph it was decided on."""
    outcome: AdaptationOutcome
    adaptation: ExecutedAdaptation
    windows: Sequence[WindowSummary]
    """The run's windows in order, before and after it, up to now."""
    later: Sequence[tuple[float, AdaptationOutcome]]
    """Clock value and outcome of each adaptation executed after it, up to now."""
    span_start: float
    """Clock value at which the span being judged begins."""
    now: float
    """Clock value up to which the run is known: the end of the span, or of the run."""
    ended: bool
    """Whether the run has ended."""
    baseline_windows: int

    @property
    def before(self) -> list[WindowSummary]:
        """The last windows before the adaptation, to which trends are fitted."""
        return [w for w in self.windows if w.end <= self.adaptation.effective_at][-self.baseline_windows :]

    @property
    def after(self) -> list[WindowSummary]:
        """The windows since the adaptation whose middle lies before `now`."""
        return [w for w in self.windows if w.start >= self.adaptation.effective_at and w.middle < self.now]

    @property
    def inside(self) -> list[WindowSummary]:
        """Those of them in the span being judged."""
        return [w for w in self.after if w.middle >= self.span_start]

    @property
    def twin(self) -> float | None:
        """The near effect that a shadow twin on the host has measured, in log loss; None: none has.

        A later adaptation ends a measurement, so the first result at the layer is this adaptation's, unless the layer
        was adapted again before it could be.
        """
        layer = self.decision.layer_id or ""
        again = min((at for at, outcome in self.later if outcome.layer_id == layer), default=math.inf)
        for window in self.after:
            if window.twins and layer in window.twins:
                gain, steps, _ = window.twins[layer]
                return gain if window.end - steps <= again else None
        return None


def evidence(case: Case) -> dict[str, float]:
    """Return the estimator's inputs by name, in the order of `NAMES`; NaN where unknown."""
    values = {**_what(case), **_where(case), **_before(case), **_since(case)}
    return {name: float(value) if math.isfinite(value) else UNKNOWN for name, value in values.items()}


def as_row(values: Mapping[str, float], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the inputs `names` as float64 [names]; one that this release does not compute is NaN."""
    return np.array([values.get(name, UNKNOWN) for name in names])


def _what(case: Case) -> dict[str, float]:
    """Describe the adaptation itself."""
    decision, graph = case.decision, case.graph
    kinds = {f"is_{kind.value.split('_')[0]}": float(decision.type == kind) for kind in DecisionType if kind != "no_op"}
    load = decision.type == DecisionType.LOAD_KERNEL
    added = case.adaptation.parameters_added
    flops, all_flops = 0.0, 0.0
    if load and decision.layer_id in graph.layer_id:
        offers = graph.offers[graph.layer_id.index(decision.layer_id)]
        flops = float(next((o.flops for o in offers if o.name == decision.blueprint), 0))
        all_flops = float(max((o.flops for node in graph.offers for o in node), default=0))
    return {
        **kinds,
        "blueprint_worth": WORTH.get(decision.blueprint or "", UNKNOWN_WORTH) if load else 0.0,
        "log_parameters_added": math.copysign(math.log1p(abs(added)), added),
        "parameters_share": added / max(case.adaptation.parameter_budget, 1),
        "flops_share": flops / all_flops if all_flops else 0.0,
        "confidence": 1.0 - decision.uncertainty,
    }


def _where(case: Case) -> dict[str, float]:
    """Describe the layer and the network at the decision."""
    graph, layer = case.graph, case.decision.layer_id
    node = graph.layer_id.index(layer) if layer in graph.layer_id else None
    values = {f"layer_{name}": _at(graph, name, node) for name in _AT_NODE}
    values |= {f"run_{name}": global_value(graph, name) for name in _OF_NETWORK}
    values["layer_is_output"] = float(node is not None and node not in graph.edge_source)
    values["layer_is_input"] = float(node is not None and node not in graph.edge_target)
    score = node_column(graph, "growth_share")
    values["layer_growth_rank"] = UNKNOWN if node is None else float((score > score[node]).sum())
    for name in ("train_loss", "validation_loss"):
        loss = graph.model_metrics.get(name)
        values[f"run_log_{name}"] = UNKNOWN if loss is None else math.log(max(loss, SMALLEST_LOSS))
    return values


def _before(case: Case) -> dict[str, float]:
    """Describe the trend before the adaptation."""
    before = case.before
    values = {"windows_before": float(len(before))}
    for series in ("train_loss", "validation_loss"):
        logs = _logs(before, series)
        values[f"fall_before_{series}"] = logs[0] - logs[-1] if len(logs) > 1 else UNKNOWN
        values[f"last_fall_{series}"] = logs[-2] - logs[-1] if len(logs) > 1 else UNKNOWN
    layer = case.decision.layer_id or ""
    found = [w.contribution[layer] for w in before if w.contribution and layer in w.contribution]
    loss = _last(before, "validation_loss") or _last(before, "train_loss")
    values["contribution_before"] = found[-1] / max(loss, SMALLEST_LOSS) if found and loss else UNKNOWN
    return values


def _since(case: Case) -> dict[str, float]:
    """Describe what the run has shown since the adaptation."""
    at, now = case.adaptation.effective_at, case.now
    before, after = case.before, case.after
    planned = _planned(case)
    counterfactual = CounterfactualEstimator(case.adaptation, before)
    projection = ProjectionEstimator(case.adaptation, before, counterfactual)
    half = after[len(after) // 2 :]
    removed = [
        p for p, o in case.later if o.layer_id == case.decision.layer_id and o.type == DecisionType.UNLOAD_KERNEL
    ]
    loads = [p for p, o in case.later if o.type == DecisionType.LOAD_KERNEL]
    values = {
        "elapsed_share": (now - at) / planned,
        "remaining_share": max(0.0, 1.0 - now / planned),
        "ended": float(case.ended),
        "windows_after": float(len(after)),
        "kept_share": (min(removed, default=now) - at) / max(now - at, 1.0),
        "removed": float(bool(removed)),
        "alone_share": (min(case.adaptation.next_adaptation_at, now) - at) / max(now - at, 1.0),
        "later_loads": float(len(loads)),
        "later_adaptations": float(len(case.later)),
    }
    for name, part in (("all", after), ("late", half), ("last", after[-2:])):
        for kind, estimator in (("projected", projection), ("gated", counterfactual)):
            gain = estimator.gain(part)
            values[f"{kind}_{name}"] = UNKNOWN if gain is None else gain.value
    alone = [w for w in after if w.end <= case.adaptation.next_adaptation_at]
    gain = projection.gain(alone)
    values["projected_alone"] = UNKNOWN if gain is None else gain.value
    values["share_last"] = _share(counterfactual, after)
    for series in ("train_loss", "validation_loss"):
        old, new = _logs(before[-2:], series), _logs(after, series)
        values[f"fall_since_{series}"] = median(old) - median(new[-2:]) if old and new else UNKNOWN
        values[f"best_fall_{series}"] = median(old) - min(new) if old and new else UNKNOWN
        alone_logs = _logs(alone, series)
        values[f"fall_alone_{series}"] = median(old) - median(alone_logs[-2:]) if old and alone_logs else UNKNOWN
    values["slower"] = _slower(before, alone)
    values |= _compute(case, planned)
    values["loss_change_at_once"] = _at_once(case.outcome)
    twin = case.twin
    values["twin"] = UNKNOWN if twin is None else twin
    return values


def _compute(case: Case, planned: float) -> dict[str, float]:
    """Describe what the adaptation costs in time, and what that costs in loss while the loss still falls.

    Latencies are measured in pairs, as a multiple of the forward pass without any kernel, which a busy neighbour does
    not bend. A run pays for a slower step with training that it no longer does: the slope of the log loss times the
    steps lost of those that remain.
    """
    before, after = case.before, case.after
    old = _last_known([_multiple(w) for w in before], 1.0)
    new = _last_known([_multiple(w) for w in after if w.end <= case.adaptation.next_adaptation_at], UNKNOWN)
    now = _last_known([_multiple(w) for w in after], new)
    at = case.adaptation.effective_at
    left = 1.0 - _spent([w for w in case.windows if w.start < at], at) / planned
    left_now = 1.0 - _spent([w for w in case.windows if w.start < case.now], case.now) / planned
    falls = {"before": _slope(before), "since": _slope(after[-FALL_WINDOWS:])}
    lost = 1.0 - old / new if new > 0 else UNKNOWN
    return {
        "latency_before": old,
        "latency_after": new,
        "latency_now": now,
        "compute_left": left,
        "compute_left_now": left_now,
        **{f"fall_ahead_{name}": fall * max(left, 0.0) * planned / old for name, fall in falls.items()},
        **{f"fall_lost_{name}": fall * max(left, 0.0) * planned / old * lost for name, fall in falls.items()},
    }


def _multiple(window: WindowSummary) -> float:
    """Return the forward pass with kernels / without, over the layers measured; NaN if none was."""
    base = sum((window.base_latency_ms or {}).values())
    return 1.0 + sum((window.kernel_latency_ms or {}).values()) / base if base > 0 else UNKNOWN


def _spent(windows: Sequence[WindowSummary], until: float) -> float:
    """Return the training time up to `until`, in steps of the network without kernels.

    A step without kernels takes what a step takes, less what kernels add to its forward and backward pass. The windows
    that are no longer held count like the first that is.
    """
    known = 1.0
    spent = 0.0
    for index, window in enumerate(windows):
        step, kernels = window.step_time_ms, sum((window.kernel_latency_ms or {}).values())
        if step is not None and step > PASSES * kernels:
            known = step / (step - PASSES * kernels)
        spent += known * (min(window.end, until) - (window.start if index else 0.0))
    return spent


def _slope(windows: Sequence[WindowSummary]) -> float:
    """Return the fall of the log held-out loss a clock unit over the last windows, else of the training loss."""
    for series in ("validation_loss", "train_loss"):
        points = [(w.middle, math.log(max(v, SMALLEST_LOSS))) for w in windows if (v := getattr(w, series)) is not None]
        points = points[-FALL_WINDOWS:]
        if len(points) >= MIN_POINTS:
            return -linear_regression([t for t, _ in points], [y for _, y in points]).slope
    return UNKNOWN


def _last_known(values: Sequence[float], default: float) -> float:
    known = [value for value in values if not math.isnan(value)]
    return known[-1] if known else default


def _share(counterfactual: CounterfactualEstimator, after: Sequence[WindowSummary]) -> float:
    shares = [share for w in after if (share := counterfactual.share(w)) is not None]
    return shares[-1] if shares else UNKNOWN


def _planned(case: Case) -> float:
    """Return the planned length of the run on its clock, or twice what it has reached if it is unknown."""
    progress = global_value(case.graph, "progress")
    if progress > 0:
        position = case.adaptation.effective_at - (case.outcome.step - case.graph.step)
        return max(position / progress, case.now)
    return 2.0 * max(case.now, 1.0)


def _slower(before: Sequence[WindowSummary], after: Sequence[WindowSummary]) -> float:
    old = [w.step_time_ms for w in before if w.step_time_ms is not None]
    new = [w.step_time_ms for w in after if w.step_time_ms is not None]
    return median(new) / median(old) - 1.0 if old and new else UNKNOWN


def _at_once(outcome: AdaptationOutcome) -> float:
    before, after = outcome.before.get("loss"), outcome.after.get("loss")
    if not before or not after or before <= 0 or after <= 0:
        return UNKNOWN
    return math.log(before / after)


def _at(graph: ModelGraph, name: str, node: int | None) -> float:
    return UNKNOWN if node is None else float(node_column(graph, name)[node])


def _logs(windows: Sequence[WindowSummary], series: str) -> list[float]:
    losses = [getattr(w, series) for w in windows]
    return [math.log(max(loss, SMALLEST_LOSS)) for loss in losses if loss is not None]


def _last(windows: Sequence[WindowSummary], series: str) -> float | None:
    found = [value for w in windows if (value := getattr(w, series)) is not None]
    return found[-1] if found else None
