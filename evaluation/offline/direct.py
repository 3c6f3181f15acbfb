"""The direct model: expected reward of a graph and an action, cross-fitted so that no run predicts itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold

from tamiyo.evaluation.offline.decisions import LoggedDecision
from tamiyo.evaluation.offline.support import run_numbers

FOLDS = 5
CHUNK_ROWS = 100_000  # of some 100 float32 columns: 40 MB

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.float32]


class Regressor(Protocol):
    """A model as scikit-learn's."""

    def fit(self, x: Any, y: Any) -> Any:
        """Fit it to rows [n, columns] with rewards [n]."""

    def predict(self, x: Any) -> Any:
        """Return the expected rewards of rows, [n]."""


def boosted_trees() -> Regressor:
    """Return the default model: shallow, so that a few hundred decisions suffice."""
    model: Regressor = HistGradientBoostingRegressor(
        learning_rate=0.05, max_iter=200, max_leaf_nodes=15, l2_regularization=1.0, early_stopping=False, random_state=0
    )
    return model


class DirectModel:
    """Predictions of a cross-fitted model on a log of n decisions."""

    def __init__(self, predicted: Array, direct: tuple[Array, ...], reward: Array) -> None:
        self.predicted = predicted
        """[n]: expected reward of each logged action."""
        self.direct = direct
        """For each evaluated policy, expected reward under its distribution, [n]."""
        spread = float(((reward - reward.mean()) ** 2).sum())
        self.r2 = 1.0 - float(((reward - predicted) ** 2).sum()) / spread if spread > 0 else 0.0
        """Share of the rewards' variance that it explains in runs it was not fitted to; at most 1."""


def cross_fitted(
    decisions: Sequence[LoggedDecision], make_model: Callable[[], Regressor] = boosted_trees, folds: int = FOLDS
) -> DirectModel:
    """Fit models to the logged actions of all runs but a fold's, and predict every legal action in that fold.

    Args:
        decisions: A log of at least two runs.
        make_model: Returns an unfitted model.
        folds: Parts that the runs are divided into.
    """
    table = _Columns(decisions)
    reward = np.array([each.reward for each in decisions])
    run = run_numbers(decisions)
    logged = np.concatenate([table.rows(each, each.actions[[each.logged]]) for each in decisions])
    predicted = np.zeros(len(decisions))
    direct = tuple(np.zeros(len(decisions)) for _ in decisions[0].targets)
    splits = GroupKFold(n_splits=min(folds, int(run.max()) + 1)).split(logged, groups=run)
    for fitted, held_out in splits:
        model = make_model()
        model.fit(logged[fitted], reward[fitted])
        for members, rows in table.chunks(decisions, held_out):
            values = np.asarray(model.predict(rows), np.float64)
            ends = np.cumsum([len(decisions[member].actions) for member in members])
            for member, q in zip(members, np.split(values, ends[:-1]), strict=True):
                predicted[member] = q[decisions[member].logged]
                for found, probabilities in zip(direct, decisions[member].targets, strict=True):
                    found[member] = probabilities @ q
    return DirectModel(predicted, direct, reward)


class _Columns:
    """Rows of (graph, action): the network's features, those of the action's layer, and the kind of action."""

    def __init__(self, decisions: Sequence[LoggedDecision]) -> None:
        names = sorted({kind for each in decisions for kind in each.kinds})
        self._kinds = {name: position for position, name in enumerate(names)}

    def rows(self, decision: LoggedDecision, actions: npt.NDArray[np.int64]) -> Rows:
        """Return one row for each of `actions`; no_op has zeros for its layer and kind."""
        graph = decision.graph
        layers = graph.node_features.numpy()
        kinds = np.array([self._kinds[name] for name in decision.kinds], np.int64)
        node, kind = np.divmod(np.maximum(actions - 1, 0), len(kinds))
        adapts = (actions > 0)[:, None]
        return np.concatenate(
            [
                np.tile(graph.global_features.numpy(), (len(actions), 1)),
                np.full((len(actions), 1), len(graph.layer_id), np.float32),
                np.where(adapts, layers[node], np.float32(0)),
                np.where(adapts, np.eye(len(self._kinds), dtype=np.float32)[kinds[kind]], np.float32(0)),
            ],
            axis=1,
        )

    def chunks(
        self, decisions: Sequence[LoggedDecision], members: npt.NDArray[np.int64]
    ) -> Iterator[tuple[list[int], Rows]]:
        """Yield decisions with the rows of all their legal actions, at most CHUNK_ROWS or one decision at a time."""
        chosen: list[int] = []
        parts: list[Rows] = []
        count = 0
        for member in members.tolist():
            actions = decisions[member].actions
            if parts and count + len(actions) > CHUNK_ROWS:
                yield chosen, np.concatenate(parts)
                chosen, parts, count = [], [], 0
            chosen.append(member)
            parts.append(self.rows(decisions[member], actions))
            count += len(actions)
        if parts:
            yield chosen, np.concatenate(parts)
