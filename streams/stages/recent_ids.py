"""Which names came lately: for memories of tens of thousands, of which only membership is asked."""

import numpy as np

BLOCK = 1_000  # names kept as they came, before they are sorted among the others


class RecentIds:
    """The last `most` names noted, and up to `BLOCK` before them; sixteen bytes each once sorted in.

    A name is known by its 64-bit hash. Python salts it, so names that are taken for each other cannot be made; of
    100,000 at random, one in 10^14 is taken for a name that was noted.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._new: dict[int, None] = {}
        self._old = np.empty(0, np.int64)
        """Oldest first."""
        self._sorted = self._old

    def __contains__(self, name: str) -> bool:
        key = hash(name)
        if key in self._new:
            return True
        at = self._sorted.searchsorted(key)
        return bool(at < len(self._sorted) and self._sorted[at] == key)

    def add(self, name: str) -> None:
        """Note a name; beyond `most`, the oldest are forgotten."""
        self._new[hash(name)] = None
        if len(self._new) >= BLOCK:
            newest = np.fromiter(self._new, np.int64, len(self._new))
            self._old = np.concatenate((self._old, newest))[-self._most :]
            self._sorted = np.sort(self._old)
            self._new = {}
