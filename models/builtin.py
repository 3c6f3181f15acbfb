"""The policy that comes with the package, and other policies that a learner can start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fsspec

from tamiyo.models.checkpoint import load
from tamiyo.models.policy import PolicyConfig, TamiyoPolicy
from tamiyo.schemas.errors import PolicyError

BUILTIN = Path(__file__).with_name("builtin_policy.safetensors")
"""Trained in the laboratory; docs/model-card.md has its data and results."""


def initial_policy(source: str, blueprints: Sequence[str], *, seed: int = 0) -> TamiyoPolicy:
    """Return the policy that a learner without a checkpoint starts from.

    Args:
        source: "builtin", the policy trained in the laboratory; "heuristic", an untrained policy, which decides as the
            heuristic does; or the fsspec URL of a checkpoint.
        blueprints: Blueprints that it shall choose among. Those it was not trained with start as in a new policy.
        seed: Of an untrained policy's weights.

    Raises:
        PolicyError: The file cannot be read, or is no policy for this program.

    Example:
        >>> policy = initial_policy("heuristic", ("low_rank",))
        >>> policy.config.heuristic_weight
        1.0
    """
    if source == "heuristic":
        return TamiyoPolicy(PolicyConfig(blueprints=tuple(blueprints), seed=seed)).eval()
    url = BUILTIN.as_uri() if source == "builtin" else source
    try:
        with fsspec.open(url, "rb") as file:
            data = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise PolicyError(f"the initial policy {source} cannot be read: {error}") from error
    policy, _, _ = load(data, blueprints=tuple(blueprints))
    return policy
