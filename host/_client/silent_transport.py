"""The transport of the other ranks of a distributed run: rank 0 publishes and receives for all."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from tamiyo.host._client.transport import InboundRecord, Make
from tamiyo.host._common.settings import HostSettings
from tamiyo.schemas.adaptation import CompiledKernel
from tamiyo.schemas.topics import Topic


class SilentTransport:
    """Publishes nothing, receives nothing, and has a store of its own in memory, for the kernels that rank 0 sends."""

    connected = False
    destination = "rank 0"
    awaits_decisions = False
    published = 0
    dropped = 0
    busy_seconds = 0.0

    def __init__(self) -> None:
        self.store_url: str | None = f"memory://tamiyo-rank-{uuid.uuid4().hex}"

    def open(self, run_id: str, settings: HostSettings, on_kernel: Callable[[CompiledKernel], None]) -> None:
        """Do nothing."""

    def publish(self, topic: Topic, make: Make) -> None:
        """Do nothing."""

    def receive(self) -> Sequence[InboundRecord]:
        """Return nothing."""
        return ()

    def close(self, timeout_s: float) -> None:
        """Do nothing."""
