"""The baseline: what a sensible engineer would do, without anything learned.

The baseline is a distribution over the legal actions, expressed as logits: most of the mass on the action that the
situation calls for, a little on its alternatives, and a trace on every other legal action, so that no propensity is 0.
It grows the layer with the highest growth score among those without a kernel, one layer after another (design,
section 11).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import blueprint_of
from tamiyo.models.features import HISTORY_WINDOWS, GraphFeatures
from tamiyo.models.graph import edge_ends
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import ModelGraph

Array = npt.NDArray[np.float64]

WORTH = {
    "parallel_expansion": 1.0,
    "bottleneck": 0.4,
    "low_rank": 0.3,
    "depthwise_separable": 0.2,
    "squeeze_excite": 0.05,
}
"""Gain of each blueprint relative to the best one (design, section 11)."""
UNKNOWN_WORTH = 0.2  # of a blueprint that was not measured
WORTHWHILE = 0.35  # worth of a blueprint below which its gain is doubtful
OUTPUT_WORTH = 0.01
"""Weight of a kernel at an output layer, which comes after all others: the last layer's gradient, and so its growth
score, is always large, but a kernel there only reads the same features again and takes most of the budget."""
DEPTH_HALVINGS = 1.0  # from first to last layer: growing from first to last reached a lower loss (section 11)

WARM_UP = 4  # windows before the first growth: scores of an untrained network mean little
USELESS_WINDOWS = 4  # windows in a row without a positive contribution before a kernel is unloaded
PROVEN_WINDOWS = 6  # windows in a row with a positive contribution before a kernel may be made permanent
LATE = 0.85  # share of the planned steps after which a new kernel has no time to pay off
SOLVED = 0.995  # validation accuracy above which nothing is left to gain
RUNAWAY = 2.0  # log_update_ratio: |change| > 0.1 |parameters| in one step is a far too high learning rate
OVERFIT = 0.35  # loss_gap while the validation loss rises: more capacity would overfit more

# Shares of the mass; a share without any action goes to no_op. "rest" keeps every legal action possible.
GROW = {"best": 0.90, "loads": 0.05, "rest": 0.003}
HESITATE = {"best": 0.01, "loads": 0.003, "rest": 0.002}
PRUNE = {"unload": 0.75, "rest": 0.003}
CALM = {"optimize": 0.40, "rest": 0.003}
IDLE = {"loads": 0.003, "fossilize": 0.01, "rest": 0.002}


@dataclass(frozen=True, slots=True)
class _Case:
    """What the heuristic looks at, each read once."""

    graph: ModelGraph
    kinds: tuple[str, ...]
    features: GraphFeatures
    active: npt.NDArray[np.bool_]
    """Layers with an active kernel, [nodes]."""


def baseline_logits(graph: ModelGraph, kinds: Sequence[str], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the baseline as logits over the flat action list.

    Args:
        graph: The graph to decide on.
        kinds: Kinds of action at one layer.
        mask: Legal actions, bool [1 + nodes x kinds]; entry 0 is True.

    Returns:
        Float32 [1 + nodes x kinds], finite: the log-probabilities of the legal actions, whose probabilities sum to one.
        An illegal action has the lowest of them.

    Raises:
        PolicyError: Another feature catalogue built the graph.
    """
    g = _Case(graph, tuple(kinds), GraphFeatures(graph), np.asarray(graph.active_seeds) > 0)
    table = mask[1:].reshape(len(graph.layer_id), len(kinds))
    proposals: dict[str, Array] = {
        "loads": _loads(g, table),
        "unload": table * _column(g.kinds, DecisionType.UNLOAD_KERNEL) * _spent(g)[:, None],
        "fossilize": table * _column(g.kinds, DecisionType.FOSSILIZE_KERNEL) * _proven(g)[:, None],
        "optimize": table * _column(g.kinds, DecisionType.OPTIMIZE_PARAMETERS) * _runaway(g)[:, None],
        "rest": table * _everything(g),
    }
    best = np.zeros_like(proposals["loads"])
    if proposals["loads"].any():
        best.flat[np.argmax(proposals["loads"])] = 1.0
    proposals["best"] = best
    shares = _situation(g, proposals)
    probabilities = np.zeros(len(mask))
    for name, share in shares.items():
        total = proposals[name].sum()
        if total > 0:
            probabilities[1:] += share * (proposals[name] / total).ravel()
    probabilities[0] = 1.0 - probabilities[1:].sum()
    lowest = probabilities[mask].min()
    return np.log(np.where(mask, probabilities, lowest)).astype(np.float32)


def baseline_distribution(
    graph: ModelGraph, kinds: Sequence[str], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the baseline as probabilities over the flat action list.

    Args:
        graph: The graph to decide on.
        kinds: Kinds of action at one layer.
        mask: Legal actions, bool [1 + nodes x kinds]; entry 0 is True.

    Returns:
        Float32 [1 + nodes x kinds]; 0 where illegal, above 0 where legal.

    Raises:
        PolicyError: Another feature catalogue built the graph.
    """
    logits = baseline_logits(graph, kinds, mask).astype(np.float64)
    weights = np.where(mask, np.exp(logits - logits[mask].max()), 0.0)
    return np.asarray(weights / weights.sum(), np.float32)


def _situation(g: _Case, proposals: dict[str, Array]) -> dict[str, float]:
    """Return the shares for the current situation: stop harm first, then grow, else wait."""
    if proposals["unload"].any():
        return PRUNE
    if proposals["optimize"].any():
        return CALM
    warm = g.features.whole("windows_seen") * HISTORY_WINDOWS >= WARM_UP
    if not warm or not proposals["loads"].any() or _doubtful(g):
        return IDLE
    node, kind = np.unravel_index(np.argmax(proposals["loads"]), proposals["loads"].shape)
    promising = g.features.node("growth_share")[node] > 0 and _worth(g.kinds)[kind] >= WORTHWHILE
    return GROW if promising else HESITATE


def _doubtful(g: _Case) -> bool:
    """Return whether one more kernel would hardly pay off: too late, solved, overfitting, or the last one is idle."""
    late = g.features.whole("progress") > LATE
    solved = g.features.whole("validation_accuracy") >= SOLVED
    overfitting = g.features.whole("loss_gap") > OVERFIT and g.features.whole("validation_loss_trend") > 0
    idle = ((g.features.node("contribution_negative") * HISTORY_WINDOWS >= 2) & g.active).any()
    return bool(late or solved or overfitting or idle)


def _loads(g: _Case, table: npt.NDArray[np.bool_]) -> Array:
    """Return the weight of each load, [nodes, kinds]: growth score x place x blueprint, at layers without a kernel."""
    growth = g.features.node("growth_share").astype(np.float64)
    if not growth.any():
        growth = np.ones_like(growth)
    # A layer with a score of 0 keeps a trace: it can grow, after all others.
    weight = np.maximum(growth, 1e-3) * 0.5 ** (DEPTH_HALVINGS * g.features.node("depth"))
    weight = np.where(_outputs(g), OUTPUT_WORTH * weight, weight)
    # A layer that has just lost its kernel would get the same one again.
    taken = g.active | (np.asarray(g.graph.fossilized_seeds) > 0) | (g.features.node("active_windows") > 0)
    taken |= g.features.node("error_share") > 0
    return np.asarray(table * _worth(g.kinds) * weight[:, None] * ~taken[:, None])


@lru_cache
def _worth(kinds: tuple[str, ...]) -> Array:
    """Return the worth of each kind's blueprint, [kinds]; 0 where it loads none."""
    names = [blueprint_of(kind) for kind in kinds]
    return np.array([0.0 if name is None else WORTH.get(name, UNKNOWN_WORTH) for name in names])


def _spent(g: _Case) -> npt.NDArray[np.bool_]:
    """Return the layers whose kernels have contributed nothing for long, or fail, bool [nodes]."""
    useless = g.features.node("contribution_negative") * HISTORY_WINDOWS >= USELESS_WINDOWS
    failing = g.features.node("recovery_failures") > 0.5
    return np.asarray(g.active & (useless | failing))


def _everything(g: _Case) -> Array:
    """Return the weight of each action within "rest", [nodes, kinds]; lowest for unloading a useful kernel."""
    useful = _useful(g)[:, None] & (_column(g.kinds, DecisionType.UNLOAD_KERNEL) > 0)
    return np.where(useful, 0.05, 1.0)


def _useful(g: _Case) -> npt.NDArray[np.bool_]:
    """Return the layers whose kernels lower the loss, bool [nodes]."""
    return np.asarray(g.active & (g.features.node("contribution") > 0))


def _proven(g: _Case) -> npt.NDArray[np.bool_]:
    """Return the layers whose kernels have lowered the loss for long, late in training, bool [nodes]."""
    late = g.features.whole("progress") > LATE
    return np.asarray(late & (g.features.node("contribution_positive") * HISTORY_WINDOWS >= PROVEN_WINDOWS))


def _runaway(g: _Case) -> npt.NDArray[np.bool_]:
    """Return the layers whose parameters change far too fast while the loss rises, bool [nodes]."""
    rising = g.features.whole("train_loss_trend") > 0
    return np.asarray(rising & (g.features.node("log_update_ratio") > RUNAWAY))


def _outputs(g: _Case) -> npt.NDArray[np.bool_]:
    """Return the layers that no other layer reads from, bool [nodes]."""
    outputs = np.ones(len(g.active), dtype=np.bool_)
    outputs[edge_ends(g.graph)[0]] = False
    return outputs


@lru_cache
def _column(kinds: tuple[str, ...], kind: str) -> Array:
    return np.array([float(name == kind) for name in kinds])
