"""The seam between an attached run and its environment: records out; decisions, kernels and control commands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tamiyo.host._common.settings import HostSettings
from tamiyo.schemas.adaptation import AdaptationDecision, CompiledKernel, ControlCommand
from tamiyo.schemas.record import Record
from tamiyo.schemas.topics import Topic

__all__ = ["InboundRecord", "Make", "Transport"]

InboundRecord = AdaptationDecision | CompiledKernel | ControlCommand

Make = Callable[[], Record]
"""Makes a record. Called once, outside the training thread if the transport has its own."""


class Transport(Protocol):
    """Carries the records of one attached run. `attach` opens it, `Handle.close` closes it.

    Training comes first: apart from `open` and `close`, no method may block or raise.
    """

    @property
    def store_url(self) -> str | None:
        """fsspec URL of the kernels' store; None: `HostSettings.store_url`."""

    @property
    def destination(self) -> str:
        """Where records go, for people; while there is no connection, also what to set."""

    @property
    def connected(self) -> bool:
        """Whether the other side was reached at least once."""

    @property
    def awaits_decisions(self) -> bool:
        """Whether decisions can still arrive after the last step; if not, `Handle.close` does not wait for them."""

    @property
    def published(self) -> int:
        """Number of records delivered."""

    @property
    def dropped(self) -> int:
        """Number of records lost: the queue was full, delivery failed, or the record was invalid."""

    @property
    def busy_seconds(self) -> float:
        """Processor time spent on records outside the training thread, seconds."""

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[CompiledKernel], None]) -> None:
        """Connect for one run.

        Decisions published after this returns must reach `receive`, because the run's topology follows at once.

        Args:
            run_id: Key of every record.
            settings: Queue capacity and timeouts.
            on_kernel: Called with each kernel record before `receive` returns it, in any thread; prefetches the kernel.

        Raises:
            ConfigurationError: The transport is open already, or cannot work as configured.
        """

    def publish(self, topic: Topic, make: Make) -> None:
        """Queue a record for publication.

        Args:
            topic: Where to publish it.
            make: Makes the record.
        """

    def receive(self) -> Sequence[InboundRecord]:
        """Return what arrived since the last call, in order of arrival."""

    def close(self, timeout_s: float) -> None:
        """Stop receiving, deliver what is queued, drop the rest.

        Args:
            timeout_s: Seconds that the deliveries may take.
        """
