"""The policy server: follows the announcements of released checkpoints and serves the newest that works."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from tamiyo.models.behaviour import Choice, choose
from tamiyo.models.checkpoint import CheckpointStore, load
from tamiyo.models.policy import TamiyoPolicy
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import PolicyError
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint
from tamiyo.streams.stages.base import View

log = structlog.get_logger(__name__)

RETRY_S = 5.0  # an eventually consistent store may list a file after it was announced

_loading = threading.Lock()
"""Held while a checkpoint is loaded, which takes as long as several decisions."""


@dataclass(frozen=True, slots=True)
class ServedPolicy:
    """A policy that may act, and the version recorded with its decisions."""

    policy: TamiyoPolicy
    version: int
    checksum: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action at one layer, in the order of the action list."""
        return self.policy.kinds

    def choose(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], *, seed: int) -> Choice:
        """Sample one of the legal actions; see `tamiyo.models.behaviour.choose`."""
        return choose(self.policy, graph, mask, seed=seed)


class Served(Protocol):
    """What decides: a released policy, or one of the laboratory's baselines."""

    @property
    def version(self) -> int:
        """Version recorded with its decisions."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action at one layer, in the order of the action list."""

    def choose(self, graph: ModelGraph, mask: npt.NDArray[np.bool_], *, seed: int) -> Choice:
        """Sample one of the legal actions; raises PolicyError if it cannot decide on this graph."""


class Policies(Protocol):
    """Where the decisions stage takes its policy from."""

    def current(self, graph: ModelGraph | None = None) -> Served | None:
        """Return what decides on `graph`; None if there is no policy yet."""

    def reject(self, served: Any, reason: Exception) -> bool:
        """Stop serving a policy that failed while deciding; return whether another one can replace it."""


class PolicyServer:
    """Serves the policy of one name.

    A newly announced version replaces the current one once its file was read, matches the announced checksum and
    version, and has finite weights. On any failure the current version stays and the file is tried again later. A
    version that is announced as rolled back, or that is rejected, is replaced by the one before it.
    """

    def __init__(
        self,
        view: View[PolicyCheckpoint],
        store: CheckpointStore,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve policy `name`.

        Args:
            view: Newest announcement per policy name.
            store: Where the checkpoint files are.
            name: The policy's name.
            clock: Monotonic seconds, for retries.
        """
        self._view = view
        self._store = store
        self._name = name
        self._clock = clock
        self._served: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._rejected: set[str] = set()
        """Checksums of policies that failed while deciding."""
        self._failed: tuple[str, float] | None = None
        """Checksum of the file that could not be loaded, and when."""

    def current(self, graph: ModelGraph | None = None) -> ServedPolicy | None:
        """Return the policy to decide with now, for any graph; None before the first was announced."""
        announced = self._view.get(self._name)
        if announced is not None:
            self._follow(announced)
        return self._served

    def reject(self, served: ServedPolicy, reason: Exception) -> bool:
        """Stop serving a policy that failed while deciding; return whether another one can replace it."""
        log.error("policy rejected", version=served.version, reason=str(reason))
        self._rejected.add(served.checksum)
        if self._served is served:
            self._step_back()
        return self._served is not None

    def _follow(self, announced: PolicyCheckpoint) -> None:
        """Serve what is announced, if it can be."""
        served = self._served
        if announced.status == CheckpointStatus.ROLLED_BACK:
            if served is not None and served.version == announced.version and self._previous is not None:
                log.warning("policy rolled back", version=served.version, to=self._previous.version)
                self._step_back()
            return
        if not self._is_loadable(announced) or not _loading.acquire(blocking=served is None):
            return  # if another partition is loading a policy, this one decides with its current policy meanwhile
        try:
            self._previous, self._served = served, self._load(announced)
        except PolicyError as error:
            self._failed = (announced.checksum, self._clock())
            serving = served.version if served is not None else None
            log.error(
                "policy load failed",
                version=announced.version,
                file=announced.file,
                serving=serving,
                error=str(error),
            )
            return
        finally:
            _loading.release()
        self._failed = None
        log.info("policy loaded", version=announced.version, experiences=announced.experiences)

    def _is_loadable(self, announced: PolicyCheckpoint) -> bool:
        """Return whether a checkpoint is not served yet, was not rejected, and did not fail within RETRY_S."""
        served = self._served
        if served is not None and (served.version, served.checksum) == (announced.version, announced.checksum):
            return False
        if announced.checksum in self._rejected:
            return False
        checksum, when = self._failed or ("", 0.0)
        return not (checksum == announced.checksum and self._clock() - when < RETRY_S)

    def _load(self, announced: PolicyCheckpoint) -> ServedPolicy:
        policy, version = _read(self._store.url, announced.file, announced.checksum)
        if version != announced.version:
            raise PolicyError(f"checkpoint {announced.file}: expected version {announced.version}, got {version}")
        return ServedPolicy(policy, announced.version, announced.checksum)

    def _step_back(self) -> None:
        self._served, self._previous = self._previous, None


@lru_cache(maxsize=4)
def _read(url: str, file: str, checksum: str) -> tuple[TamiyoPolicy, int]:
    """Return a checkpoint's policy and version; loaded once per process and shared by all its partitions."""
    try:
        data = CheckpointStore(url).read(file)
    except OSError as error:
        raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
    policy, header, _ = load(data, checksum)
    return policy, header.version
