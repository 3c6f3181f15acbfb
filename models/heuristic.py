"""The baseline: what a sensible engineer would do without having learned anything."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.schemas.analysis import ModelGraph


def baseline_logits(
    graph: ModelGraph, kinds: Sequence[str], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the heuristic as logits over the flat list, [actions]; all finite, illegal ones are the caller's to mask."""
    raise NotImplementedError
