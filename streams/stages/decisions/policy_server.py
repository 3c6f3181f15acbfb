"""The policy server: follows the announcements of released checkpoints and serves the newest that works."""

import hashlib
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
from tamiyo.schemas.learning import CheckpointStatus, PolicyCheckpoint, policy_orders_key
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
    version that is announced as rolled back is replaced by the announced fallback, and a rejected one by the version
    before it. A version that an operator pins is served whatever is announced.
    """

    def __init__(
        self,
        view: View[PolicyCheckpoint],
        store: CheckpointStore,
        name: str,
        *,
        canary_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve policy `name`.

        Args:
            view: Newest announcement per policy name.
            store: Where the checkpoint files are.
            name: The policy's name.
            canary_share: Share of runs that use a new version while it is tested; the others use its fallback.
            clock: Monotonic seconds, for retries.
        """
        self._view = view
        self._store = store
        self._name = name
        self._canary_share = canary_share
        self._clock = clock
        self._served: ServedPolicy | None = None
        self._previous: ServedPolicy | None = None
        self._fallback: ServedPolicy | None = None
        """What runs outside the canary share use; None if all use the same."""
        self._rejected: set[str] = set()
        """Checksums of policies that failed while deciding."""
        self._failed: tuple[str, float] | None = None
        """Checksum of the file that could not be loaded, and when."""

    def current(self, graph: ModelGraph | None = None) -> ServedPolicy | None:
        """Return the policy to decide with now; None before the first was announced.

        Args:
            graph: The graph to decide on; None: of a run within the canary share.
        """
        announced = self._view.get(self._name)
        orders = self._view.get(policy_orders_key(self._name))
        if orders is not None and orders.pinned:
            self._fallback = None
            self._serve(orders)
        elif announced is not None:
            self._follow(announced)
        if graph is None or self._fallback is None or in_canary(graph.run_id, self._canary_share):
            return self._served
        return self._fallback

    def reject(self, served: ServedPolicy, reason: Exception) -> bool:
        """Stop serving a policy that failed while deciding; return whether another one can replace it."""
        log.error("policy rejected", version=served.version, reason=str(reason))
        self._rejected.add(served.checksum)
        if self._fallback is served:
            self._fallback = None
        if self._served is served:
            self._step_back()
        return self._served is not None

    def _follow(self, announced: PolicyCheckpoint) -> None:
        """Serve what is announced, if it can be."""
        if announced.status == CheckpointStatus.ROLLED_BACK:
            self._fallback = None
            self._follow_rollback(announced)
            return
        self._serve(announced)
        served, fallback = self._served, self._fallback
        if self._canary_share == 1.0 or announced.fallback_version is None:
            self._fallback = None
        elif served is not None and served.version == announced.version:
            wanted = (announced.fallback_version, announced.fallback_checksum)
            if fallback is None or (fallback.version, fallback.checksum) != wanted:
                self._fallback = self._loaded(self._fallback_of(announced)) or fallback

    def _follow_rollback(self, announced: PolicyCheckpoint) -> None:
        """Replace a version that was rolled back, and those between it and its fallback."""
        served, previous = self._served, self._previous
        fallback = announced.fallback_version
        if fallback is None:
            if served is not None and served.version == announced.version and previous is not None:
                log.warning("policy rolled back", version=served.version, to=previous.version)
                self._step_back()
        elif served is None or (served.version <= announced.version and served.version != fallback):
            if previous is not None and previous.version == fallback:
                self._step_back()
            else:
                self._serve(self._fallback_of(announced))
                unchanged = self._served is served and served is not None and served.version == announced.version
                if unchanged and previous is not None:
                    self._step_back()  # the fallback cannot be read
            if self._served is not served and self._served is not None:
                log.warning("policy rolled back", version=announced.version, to=self._served.version)

    def _fallback_of(self, announced: PolicyCheckpoint) -> PolicyCheckpoint:
        """Return the fallback of an announced version, as if it had been announced itself."""
        version = announced.fallback_version or 0
        changes = {"version": version, "checksum": announced.fallback_checksum, "status": CheckpointStatus.RELEASED}
        return announced.model_copy(update={**changes, "file": self._store.file_name(version)})

    def _serve(self, announced: PolicyCheckpoint) -> None:
        """Serve a version, if it can be loaded."""
        served = self._served
        if served is not None and (served.version, served.checksum) == (announced.version, announced.checksum):
            return
        loaded = self._loaded(announced)
        if loaded is not None:
            self._previous, self._served = served, loaded

    def _loaded(self, announced: PolicyCheckpoint) -> ServedPolicy | None:
        """Load a version; None if that failed, now or within RETRY_S, or while another partition is loading."""
        served = self._served
        if not self._is_loadable(announced) or not _loading.acquire(blocking=served is None):
            return None  # if another partition is loading a policy, this one decides with its current policy meanwhile
        try:
            loaded = self._load(announced)
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
            return None
        finally:
            _loading.release()
        self._failed = None
        log.info("policy loaded", version=announced.version, experiences=announced.experiences)
        return loaded

    def _is_loadable(self, announced: PolicyCheckpoint) -> bool:
        """Return whether a checkpoint was not rejected, and did not fail within RETRY_S."""
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


def in_canary(run_id: str, share: float) -> bool:
    """Return whether a run uses new versions while they are tested; a run that does keeps doing so at a larger share.

    Args:
        run_id: The run.
        share: Share of all runs, in [0, 1].

    Example:
        >>> [in_canary("run-1", share) for share in (0.0, 0.2, 1.0)]
        [False, False, True]
    """
    digest = hashlib.blake2b(run_id.encode(), digest_size=8, person=b"canary").digest()
    return int.from_bytes(digest, "big") < share * 2.0**64


@lru_cache(maxsize=4)
def _read(url: str, file: str, checksum: str) -> tuple[TamiyoPolicy, int]:
    """Return a checkpoint's policy and version; loaded once per process and shared by all its partitions."""
    try:
        data = CheckpointStore(url).read(file)
    except OSError as error:
        raise PolicyError(f"checkpoint {file} cannot be read: {error}") from error
    policy, header, _ = load(data, checksum)
    return policy, header.version
