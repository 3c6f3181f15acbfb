"""The policies that can be evaluated: a checkpoint, the shipped one, the heuristic, the logged one, and never."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import blueprint_of
from tamiyo.models.behaviour import distribution
from tamiyo.models.builtin import initial_policy
from tamiyo.models.checkpoint import load
from tamiyo.models.checkpoint_store import MAX_BYTES
from tamiyo.models.heuristic import baseline_distribution
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.errors import ConfigurationError, PolicyError
from tamiyo.schemas.learning import Experience

Mask = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]


class TargetPolicy(Protocol):
    """A policy to evaluate."""

    @property
    def name(self) -> str:
        """Name in tables and messages."""

    @property
    def kinds(self) -> tuple[str, ...] | None:
        """Kinds of action that it chooses among; None: those of each experience."""

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return its distribution over an experience's action list; 0 where `mask` is False."""


class Checkpoint:
    """A learned policy, which decides as in production."""

    def __init__(self, name: str, policy: TamiyoPolicy) -> None:
        self.name = name
        self.kinds = policy.kinds
        self._policy = policy

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return the distribution that a decision would be sampled from."""
        return distribution(self._policy, experience.graph, mask)


class Heuristic:
    """The heuristic, which acts where no policy is released."""

    name = "heuristic"
    kinds = None

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return the heuristic's distribution."""
        return baseline_distribution(experience.graph, experience.kinds, mask)


class Never:
    """Never adapts."""

    name = "never"
    kinds = None

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return no_op with probability 1."""
        probabilities = np.zeros(len(mask), np.float32)
        probabilities[0] = 1.0
        return probabilities


class Logged:
    """Whatever decided: its distribution is the recorded one, so its value by IPS is the log's mean reward."""

    name = "logged"
    kinds = None

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return the recorded distribution."""
        return experience.probabilities.numpy()


class Builtin:
    """The policy that comes with the package, for whichever blueprints the log has."""

    name = "builtin"
    kinds = None

    def probabilities(self, experience: Experience, mask: Mask) -> Probabilities:
        """Return the distribution that a decision would be sampled from."""
        return distribution(_builtin(tuple(experience.kinds)), experience.graph, mask)


@lru_cache(maxsize=4)
def _builtin(kinds: tuple[str, ...]) -> TamiyoPolicy:
    blueprints = [name for kind in kinds if (name := blueprint_of(kind)) is not None]
    return initial_policy("builtin", blueprints)


NAMED: dict[str, Callable[[], TargetPolicy]] = {policy.name: policy for policy in (Builtin, Heuristic, Never, Logged)}


def target_policy(text: str) -> TargetPolicy:
    """Return the policy that `text` names.

    Args:
        text: One of `NAMED`, or the path of a checkpoint file.

    Raises:
        ConfigurationError: There is no such file, or it cannot be read.
        PolicyError: The file is not a checkpoint, is corrupt, or reads another version of the features.
    """
    if text in NAMED:
        return NAMED[text]()
    path = Path(text)
    if not path.is_file():
        raise ConfigurationError(
            f"there is no checkpoint {text}: expected a file such as policy-000012.safetensors, or one of "
            f"{', '.join(NAMED)}"
        )
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyError(f"{text} is larger than {MAX_BYTES} bytes: it is not a policy")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{text} cannot be read: {error.strerror}") from error
    try:
        policy, _, _ = load(data)
    except PolicyError as error:
        raise type(error)(f"{text}: {error}") from error
    return Checkpoint(path.stem, policy)
