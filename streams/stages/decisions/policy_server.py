"""Which policy is served: follows the announcements of released checkpoints, and keeps what works."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import structlog

from tamiyo.models.checkpoint import CheckpointStore, load
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.stages.base import View

log = structlog.get_logger(__name__)

RETRY_S = 5.0  # a store may show a file a little after it was announced

_reading = threading.Lock()
"""Held while a file is read and made into a policy, which takes as long as several decisions."""


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy that may act, and under which version it does."""

    policy: TamiyoPolicy
    version: int
    checksum: str


class PolicyServer:
    """The policy under one name.

    A newer announcement replaces it once its file was read, has the announced checksum and version, and holds finite
    numbers; on any failure the incumbent stays and the file is tried again later. A version that is announced as rolled
    back, or that turned out not to work, gives way to the one before it.
    """

    def __init__(
        self,
        view: View[PolicyCheckpoint],
        store: CheckpointStore,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._view = view
        self._store = store
        self._name = name
        self._clock = clock
        self._served: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._distrusted: set[str] = set()
        """Checksums of policies that turned out not to work."""
        self._failed: tuple[str, float] | None = None
        """Checksum of the file that could not be served, and when."""

    def current(self, graph: ModelGraph | None = None) -> ServedPolicy | None:
        """Return the policy to decide with now, whatever the graph; None before the first was announced."""
        announced = self._view.get(self._name)
        if announced is not None:
            self._follow(announced)
        return self._served

    def reject(self, served: ServedPolicy, reason: Exception) -> bool:
        """Give up a policy that does not work; returns whether there is another to go on with."""
        log.error("a policy does not work and is not served any more", version=served.version, reason=str(reason))
        self._distrusted.add(served.checksum)
        if self._served is served:
            self._step_back()
        return self._served is not None

    def _follow(self, announced: PolicyCheckpoint) -> None:
        served = self._served
        if announced.status == CheckpointStatus.ROLLED_BACK:
            if served is not None and served.version == announced.version and self._previous is not None:
                log.warning("a policy was rolled back", version=served.version, to=self._previous.version)
                self._step_back()
            return
        if served is not None and (served.version, served.checksum) == (announced.version, announced.checksum):
            return
        if announced.checksum in self._distrusted:
            return
        checksum, when = self._failed or ("", 0.0)
        if checksum == announced.checksum and self._clock() - when < RETRY_S:
            return
        if not _reading.acquire(blocking=served is None):
            return  # another partition is reading a policy: this one's graphs need not wait for it
        try:
            self._previous, self._served = served, self._load(announced)
        except PolicyError as error:
            self._failed = (announced.checksum, self._clock())
            log.error(
                "a released policy cannot be served",
                version=announced.version,
                file=announced.file,
                serving=served.version if served is not None else None,
                error=str(error),
            )
            return
        finally:
            _reading.release()
        self._failed = None
        log.info("serving a policy", version=announced.version, experiences=announced.experiences)

    def _load(self, announced: PolicyCheckpoint) -> ServedPolicy:
        policy, version = _read(self._store.url, announced.file, announced.checksum)
        if version != announced.version:
            raise PolicyError(f"checkpoint {announced.file} is of version {version}, {announced.version} was announced")
        return ServedPolicy(policy, announced.version, announced.checksum)

    def _step_back(self) -> None:
        self._served, self._previous = self._previous, None


@lru_cache(maxsize=4)
def _read(url: str, file: str, checksum: str) -> tuple[TamiyoPolicy, int]:
    """Return a checkpoint's policy and version, made once a process: all its partitions decide with the same one."""
    try:
        data = CheckpointStore(url).read(file)
    except OSError as error:
        raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
    policy, header, _ = load(data, checksum)
    return policy, header.version
