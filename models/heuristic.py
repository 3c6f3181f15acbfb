"""The baseline: what a sensible engineer would do without having learned anything.

It is a distribution, written down as logits: most of the mass on what the situation asks for, a little on its
alternatives, and a trace on everything else that is legal, so that no propensity is ever 0. Growth goes where the
growth score is highest among the layers without a kernel, one layer after another (design, section 11).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import blueprint_of
from tamiyo.models.features import HISTORY_WINDOWS, global_value, node_column
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
"""How much each blueprint was worth beside the best one (design, section 11)."""
UNKNOWN_WORTH = 0.2
WORTHWHILE = 0.35  # of a blueprint: below it the gain is doubtful
OUTPUT_WORTH = 0.01
"""Of a kernel at an output layer. The last layer's gradient, and so its score, is always large, but a kernel there only
reads the same features again, and takes most of the budget: it comes after all others."""
DEPTH_HALVINGS = 1.0  # from first to last layer: growing first to last ended lower than last to first (section 11)

WARM_UP = 4  # windows before the first growth: scores of an untrained network say little
PATIENCE = 4  # windows in a row without a positive contribution before a kernel is taken out
SETTLED = 6  # windows in a row with one before a kernel may be made permanent
LATE = 0.85  # of the planned steps: a kernel loaded after it has no time to pay its rent
SOLVED = 0.995  # validation accuracy that leaves nothing to gain
RUNAWAY = 2.0  # log_update_ratio, that is |change| > 0.1 |parameters| in one step: a rate far too high
OVERFIT = 0.35  # loss_gap while the validation loss rises: more capacity would overfit more

# Shares of the mass. What an empty share leaves over goes to no_op; "rest" keeps every legal action possible.
GROW = {"best": 0.90, "loads": 0.05, "rest": 0.003}
HESITATE = {"best": 0.01, "loads": 0.003, "rest": 0.002}
PRUNE = {"unload": 0.75, "rest": 0.003}
CALM = {"optimize": 0.40, "rest": 0.003}
IDLE = {"loads": 0.003, "fossilize": 0.01, "rest": 0.002}


def baseline_logits(graph: ModelGraph, kinds: Sequence[str], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return the heuristic as logits over the flat list, [actions]; finite, and lowest where illegal.

    Over the legal actions they are log-probabilities that sum to one. Raises PolicyError for another feature
    catalogue's graph.
    """
    table = mask[1:].reshape(len(graph.layer_id), len(kinds))
    proposals: dict[str, Array] = {
        "loads": _loads(graph, kinds, table),
        "unload": table * _column(kinds, DecisionType.UNLOAD_KERNEL) * _spent(graph)[:, None],
        "fossilize": table * _column(kinds, DecisionType.FOSSILIZE_KERNEL) * _proven(graph)[:, None],
        "optimize": table * _column(kinds, DecisionType.OPTIMIZE_PARAMETERS) * _runaway(graph)[:, None],
        "rest": table * _everything(graph, kinds),
    }
    best = np.zeros_like(proposals["loads"])
    if proposals["loads"].any():
        best.flat[np.argmax(proposals["loads"])] = 1.0
    proposals["best"] = best
    shares = _situation(graph, kinds, proposals)
    probabilities = np.zeros(len(mask))
    for name, share in shares.items():
        total = proposals[name].sum()
        if total > 0:
            probabilities[1:] += share * (proposals[name] / total).ravel()
    probabilities[0] = 1.0 - probabilities[1:].sum()
    lowest = probabilities[mask].min()
    return np.log(np.where(mask, probabilities, lowest)).astype(np.float32)


def _situation(graph: ModelGraph, kinds: Sequence[str], proposals: dict[str, Array]) -> dict[str, float]:
    """Which shares the moment calls for: stop harm first, then grow, else wait."""
    if proposals["unload"].any():
        return PRUNE
    if proposals["optimize"].any():
        return CALM
    warm = global_value(graph, "windows_seen") * HISTORY_WINDOWS >= WARM_UP
    if not warm or not proposals["loads"].any() or _doubtful(graph):
        return IDLE
    node, kind = np.unravel_index(np.argmax(proposals["loads"]), proposals["loads"].shape)
    promising = node_column(graph, "growth_share")[node] > 0 and _worth(kinds)[kind] >= WORTHWHILE
    return GROW if promising else HESITATE


def _doubtful(graph: ModelGraph) -> bool:
    """Whether one more kernel would hardly pay: too late, nothing left to gain, overfitting, or the last one idles."""
    late = global_value(graph, "progress") > LATE
    solved = global_value(graph, "validation_accuracy") >= SOLVED
    overfitting = global_value(graph, "loss_gap") > OVERFIT and global_value(graph, "validation_loss_trend") > 0
    idle = ((node_column(graph, "contribution_negative") * HISTORY_WINDOWS >= 2) & _active(graph)).any()
    return bool(late or solved or overfitting or idle)


def _loads(graph: ModelGraph, kinds: Sequence[str], table: npt.NDArray[np.bool_]) -> Array:
    """Weight of each load, [nodes, kinds]: growth score, place and blueprint, at layers that lately had no kernel."""
    growth = node_column(graph, "growth_share").astype(np.float64)
    if not growth.any():
        growth = np.ones_like(growth)
    # A trace for a score of 0: the layer can be grown, only not first.
    weight = np.maximum(growth, 1e-3) * 0.5 ** (DEPTH_HALVINGS * node_column(graph, "depth"))
    weight = np.where(_outputs(graph), OUTPUT_WORTH * weight, weight)
    # A layer that has just lost its kernel would only get the same one again.
    taken = _active(graph) | (np.array(graph.fossilized_seeds) > 0) | (node_column(graph, "active_windows") > 0)
    taken |= node_column(graph, "error_share") > 0
    return np.asarray(table * _worth(kinds) * weight[:, None] * ~taken[:, None])


def _worth(kinds: Sequence[str]) -> Array:
    """Of each kind's blueprint, [kinds]; 0 where it loads none."""
    names = [blueprint_of(kind) for kind in kinds]
    return np.array([0.0 if name is None else WORTH.get(name, UNKNOWN_WORTH) for name in names])


def _spent(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    """Layers whose kernels have contributed nothing for long, or fail."""
    useless = node_column(graph, "contribution_negative") * HISTORY_WINDOWS >= PATIENCE
    failing = node_column(graph, "recovery_failures") > 0.5
    return np.asarray(_active(graph) & (useless | failing))


def _everything(graph: ModelGraph, kinds: Sequence[str]) -> Array:
    """Weight of each action of last resort, [nodes, kinds]; least for taking out a kernel that would be missed."""
    missed = _useful(graph)[:, None] & (_column(kinds, DecisionType.UNLOAD_KERNEL) > 0)
    return np.where(missed, 0.05, 1.0)


def _useful(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    """Layers whose kernels the network would miss."""
    return np.asarray(_active(graph) & (node_column(graph, "contribution") > 0))


def _proven(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    """Layers whose kernels have contributed for long, late in training."""
    late = global_value(graph, "progress") > LATE
    return np.asarray(late & (node_column(graph, "contribution_positive") * HISTORY_WINDOWS >= SETTLED))


def _runaway(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    """Layers that are changed wildly while the loss rises."""
    rising = global_value(graph, "train_loss_trend") > 0
    return np.asarray(rising & (node_column(graph, "log_update_ratio") > RUNAWAY))


def _outputs(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    """Layers that no other layer reads from, where others do have readers."""
    outputs = np.ones(len(graph.layer_id), dtype=np.bool_)
    outputs[np.array(graph.edge_source, dtype=np.int64)] = False
    return outputs


def _active(graph: ModelGraph) -> npt.NDArray[np.bool_]:
    return np.array(graph.active_seeds) > 0


def _column(kinds: Sequence[str], kind: str) -> Array:
    return np.array([float(name == kind) for name in kinds])
