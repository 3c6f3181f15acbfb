"""Which records made a stage raise, remembered past the end of the process: a bug must not stop a partition for ever.

A stage that raised is not fed on, since nobody knows what state the bug left it in: the process ends with nothing
acknowledged, and the next one reads the same records again. Before it ends, it writes down here what it had fed. If
that was one record, that one has failed once more; if it was a batch, its records are fed one by one from then on, so
that the one to blame will be known. A record that has failed often enough goes to the dead letters without being fed.

The place is a small file a partition, on the disk of the worker that failed. Another machine that takes the partition
over counts for itself; what has gone to the dead letters says so there (`POISON_HEADER`), and is fed nowhere again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from tamiyo.schemas.files import write_atomically
from tamiyo.streams.stages.base import Incoming

log = structlog.get_logger(__name__)

REASON_LENGTH = 1_000  # characters of an exception: a word to find the bug by, not the record it may quote


class PoisonTracker:
    """The suspected records of one partition of one group. Without a path, they are forgotten with the process."""

    def __init__(self, path: Path | None = None, *, attempts: int = 3) -> None:
        """Read what is known; `attempts` failures of a record that was fed alone condemn it."""
        self._path = path
        self._attempts = attempts
        self._failures: dict[str, int] = {}
        self._reason = ""
        if path is not None:
            self._read(path)

    def __bool__(self) -> bool:
        return bool(self._failures)

    def forget_below(self, positions: Mapping[str, int]) -> None:
        """Forget what lies before the offsets that reading begins at: it will not be fed again."""
        self._failures = {
            place: count
            for place, count in self._failures.items()
            for topic, _, offset in (place.rpartition(":"),)
            if int(offset) >= positions.get(topic, 0)
        }

    def isolate(self, topic: str, offset: int) -> bool:
        """Return whether a record is to be fed alone."""
        return f"{topic}:{offset}" in self._failures

    def is_poison(self, topic: str, offset: int) -> str | None:
        """Return why a record is not to be fed any more; None where it is."""
        failures = self._failures.get(f"{topic}:{offset}", 0)
        if failures < self._attempts:
            return None
        return f"poison: alone, it ended the process {failures} times; last {self._reason}"

    def record_failure(self, batch: Iterable[Incoming], error: Exception) -> None:
        """Write down that the stage raised `error` on a batch. Never raises: the process is about to end anyway."""
        places = [f"{each.topic}:{each.offset}" for each in batch]
        for place in places:
            self._failures[place] = self._failures.get(place, 0) + (len(places) == 1)
        self._reason = f"{type(error).__name__}: {error}"[:REASON_LENGTH]
        log.error(
            "records are suspected, and fed one by one from now on" if len(places) > 1 else "a record is suspected",
            records=places[:5], count=len(places), failures=self._failures[places[0]], reason=self._reason,
        )  # fmt: skip
        try:
            self._write()
        except OSError as problem:
            log.error("the suspicion cannot be kept: it begins anew with the next process", error=str(problem))

    def _read(self, path: Path) -> None:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
            self._failures = {str(place): int(count) for place, count in found["failures"].items()}
            self._reason = str(found["reason"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.error(
                "the file of suspected records cannot be read, and is not heeded", path=str(path), error=str(error)
            )

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps({"failures": self._failures, "reason": self._reason}))
