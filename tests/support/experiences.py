"""Experiences for tests: one decision at a small network's graph, every part of it adjustable."""

from functools import lru_cache
from typing import Any

import numpy as np

from tamiyo.models.actions import kinds, size
from tamiyo.models.learning.example import Example
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import identity
from tamiyo.schemas.learning import Experience
from tamiyo.schemas.record import Tensor
from tests.support.factories import make_graph

BLUEPRINTS = ("parallel_expansion", "low_rank")
KINDS = kinds(BLUEPRINTS)
HEADS = 3


def small_policy(**fields: Any) -> TamiyoPolicy:
    """A policy that an update of takes milliseconds."""
    shape = {"blueprints": BLUEPRINTS, "hidden": 8, "layers": 1, "heads": HEADS}
    return TamiyoPolicy(PolicyConfig(**{**shape, **fields})).eval()


@lru_cache(maxsize=32)
def graph_of(layers: int) -> ModelGraph:
    """The same graph again: making one takes longer than learning from it."""
    return make_graph(3, layers=layers)


def make_experience(
    name: str | int = 0,
    *,
    action: int = 1,
    layers: int = 2,
    legal: list[int] | None = None,
    probabilities: list[float] | None = None,
    **fields: Any,
) -> Experience:
    """Action `action` was sampled among the `legal` ones (None: all), uniformly unless `probabilities` are given."""
    count = size(layers, KINDS)
    mask = np.zeros(count, np.uint8)
    mask[legal if legal is not None else slice(None)] = 1
    spread = mask / mask.sum() if probabilities is None else np.array(probabilities)
    values: dict[str, Any] = {
        "run_id": "run-1",
        "experience_id": identity("experience", name),
        "revision": 0,
        "time_ms": 1_700_000_000_000,
        "graph": graph_of(layers),
        "kinds": list(KINDS),
        "action_index": action,
        "mask": mask.tobytes(),
        "probabilities": Tensor.of(spread.astype(np.float32)),
        "policy_version": 0,
        "value": 0.0,
        "reward": 0.5,
        "confidence": 1.0,
        "success": True,
        "complete": True,
    }
    return Experience(**{**values, **fields})


def make_example(name: str | int = 0, **fields: Any) -> Example:
    """The same as the learner computes with it."""
    return Example.of(make_experience(name, **fields), KINDS, HEADS)
