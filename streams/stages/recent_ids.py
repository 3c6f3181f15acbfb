"""A bounded set of the ids added last, for tens of thousands of ids of which only membership is needed."""

import numpy as np

BLOCK = 1_000  # ids kept in order of arrival before they are sorted among the others


class RecentIds:
    """The last `most` ids added, and up to `BLOCK` before them; sixteen bytes each once sorted.

    An id is kept as its 64-bit hash. Python salts it, so nobody can construct ids that collide; with 100,000 random
    ids, one of 10^14 others is taken for a member.

    Args:
        most: How many ids are kept at least, >= 1.
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
        place = self._sorted.searchsorted(key)
        return bool(place < len(self._sorted) and self._sorted[place] == key)

    def discard(self, name: str) -> None:
        """Remove an id if it is there."""
        key = hash(name)
        self._new.pop(key, None)
        self._old = self._old[self._old != key]
        self._sorted = np.sort(self._old)

    def add(self, name: str) -> None:
        """Add an id; beyond `most`, the oldest are dropped."""
        self._new[hash(name)] = None
        if len(self._new) >= BLOCK:
            newest = np.fromiter(self._new, np.int64, len(self._new))
            self._old = np.concatenate((self._old, newest))[-self._most :]
            self._sorted = np.sort(self._old)
            self._new = {}
