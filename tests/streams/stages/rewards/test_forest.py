from dataclasses import replace

import numpy as np
import pytest

from tamiyo.schemas.errors import PolicyError
from tamiyo.streams.stages.rewards.forest import Forest

# Two trees: x0 <= 1 ? 10 : 20 (NaN right), and x1 <= 0 ? 1 : (x0 <= 5 ? 2 : 3) (NaN left, then right).
FOREST = Forest(
    feature=np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int32),
    threshold=np.array([1.0, 0, 0, 0.0, 0, 5.0, 0, 0]),
    missing_left=np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int32),
    left=np.array([1, 1, 2, 4, 4, 6, 6, 7], np.int32),
    right=np.array([2, 1, 2, 5, 4, 7, 6, 7], np.int32),
    value=np.array([0, 10.0, 20.0, 0, 1.0, 0, 2.0, 3.0]),
    roots=np.array([0, 3], np.int32),
    base=0.5,
    depth=2,
)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1.0, 0.0], 0.5 + 10 + 1),
        ([1.1, 0.1], 0.5 + 20 + 2),
        ([5.0, 1.0], 0.5 + 20 + 2),
        ([5.1, 1.0], 0.5 + 20 + 3),
        ([np.nan, np.nan], 0.5 + 20 + 1),
        ([np.nan, 1.0], 0.5 + 20 + 3),
        ([np.inf, -np.inf], 0.5 + 20 + 1),
    ],
)
def test_every_tree_adds_the_value_of_the_leaf_that_the_row_reaches(row: list[float], expected: float) -> None:
    assert FOREST.predict(np.array(row)) == pytest.approx(expected)


def test_a_saved_forest_is_the_same() -> None:
    tensors = FOREST.tensors("gain.mean")
    again = Forest.of(tensors, "gain.mean", features=2)
    for row in ([0.0, 0.0], [2.0, 2.0], [np.nan, 7.0]):
        assert again.predict(np.array(row)) == FOREST.predict(np.array(row))


@pytest.mark.parametrize(
    "damage",
    [
        {"left": np.array([1, 1, 2, 4, 4, 6, 6, 8], np.int32)},
        {"right": np.array([-1, 1, 2, 5, 4, 7, 6, 7], np.int32)},
        {"feature": np.array([2, 0, 0, 1, 0, 0, 0, 0], np.int32)},
        {"roots": np.array([0, 8], np.int32)},
        {"value": np.array([0, 10.0, np.nan, 0, 1.0, 0, 2.0, 3.0])},
        {"threshold": np.array([1.0])},
        {"base": float("inf")},
        {"depth": 65},
        {"depth": -1},
    ],
)
def test_a_damaged_forest_is_refused(damage: dict[str, object]) -> None:
    tensors = replace(FOREST, **damage).tensors("x")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="damaged"):
        Forest.of(tensors, "x", features=2)


def test_a_missing_forest_is_refused() -> None:
    with pytest.raises(PolicyError, match="no forest 'y'"):
        Forest.of(FOREST.tensors("x"), "y", features=2)
