"""Recent experiences to learn from again: the surprising ones more often, with a correction for that."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from tamiyo.models.example import Example

SMALLEST_PRIORITY = 1e-3  # rewards lie in [-1, 1]; what was predicted to the third digit still comes round


@dataclass(slots=True)
class _Entry:
    example: Example
    advantage: float


class Replay:
    """At most `capacity` examples by experience id; the highest revision of an experience is the one held.

    Sampling is proportional to (|advantage| + SMALLEST_PRIORITY) ** exponent (Schaul et al., "Prioritized experience
    replay", 2016). Sums over all entries at each draw: 100,000 take a few milliseconds, an update a hundred times that.
    """

    def __init__(self, capacity: int = 100_000, *, exponent: float = 0.6, correction: float = 0.4) -> None:
        self._capacity = capacity
        self._exponent = exponent
        self._correction = correction
        self._entries: dict[str, _Entry] = {}  # in order of arrival, so the first is the oldest

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, experience_id: str) -> Example | None:
        """Return what is held of an experience, or None."""
        entry = self._entries.get(experience_id)
        return entry.example if entry else None

    def add(self, example: Example, advantage: float) -> bool:
        """Hold an example, in place of an older revision; returns False where this or a newer one is held already."""
        held = self._entries.get(example.experience_id)
        if held is not None:
            if held.example.revision >= example.revision:
                return False
            del self._entries[example.experience_id]
        self._entries[example.experience_id] = _Entry(example, advantage)
        for oldest in list(islice(self._entries, max(0, len(self._entries) - self._capacity))):
            del self._entries[oldest]
        return True

    def expire(self, oldest_version: int) -> int:
        """Drop what policies older than `oldest_version` decided; returns how many."""
        old = [key for key, entry in self._entries.items() if entry.example.policy_version < oldest_version]
        for key in old:
            del self._entries[key]
        return len(old)

    def reprioritise(self, examples: Sequence[Example], advantages: npt.ArrayLike) -> None:
        """Give examples still held their newest advantage."""
        for example, advantage in zip(examples, np.asarray(advantages, dtype=float).tolist(), strict=True):
            entry = self._entries.get(example.experience_id)
            if entry is not None:
                entry.advantage = advantage

    def probabilities(self, exclude: Collection[str] = ()) -> tuple[list[Example], npt.NDArray[np.float64]]:
        """Return everything that may be drawn, and the probability of each to be the first that is."""
        entries = [entry for key, entry in self._entries.items() if key not in exclude]
        magnitudes = np.abs(np.array([entry.advantage for entry in entries], dtype=np.float64))
        priorities = (magnitudes + SMALLEST_PRIORITY) ** self._exponent
        return [entry.example for entry in entries], priorities / priorities.sum() if entries else priorities

    def sample(
        self, count: int, rng: np.random.Generator, *, exclude: Collection[str] = ()
    ) -> tuple[list[Example], npt.NDArray[np.float64]]:
        """Draw up to `count` different examples; returns them with their importance corrections, the largest 1."""
        examples, probabilities = self.probabilities(exclude)
        count = min(count, len(examples))
        if count <= 0:
            return [], np.empty(0)
        drawn = rng.choice(len(examples), size=count, replace=False, p=probabilities)
        corrections = (len(examples) * probabilities[drawn]) ** -self._correction
        return [examples[index] for index in drawn], corrections / corrections.max()
