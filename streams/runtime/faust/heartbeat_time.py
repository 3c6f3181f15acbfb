"""Record when the group's coordinator last accepted a heartbeat.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread.on_start`, `ConsumerThread.on_partitions_assigned`) and aiokafka
0.14.0 (`GroupCoordinator._do_heartbeat`).

A process that was paused past its session has lost its partitions and has not been notified yet. The time of the last
accepted heartbeat is how it finds out before it publishes (`streams/runtime/output_publisher.py`).
"""

import time
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread


class HeartbeatTime(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread with the time of its last accepted heartbeat."""

    last_heartbeat: float = 0.0
    """Monotonic time when the group's coordinator last confirmed that this process is a member."""

    async def on_start(self) -> None:
        """Start the consumer and wrap its heartbeat."""
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        do_heartbeat = coordinator._do_heartbeat

        async def do_heartbeat_and_record() -> bool:
            accepted = bool(await do_heartbeat())
            if accepted:
                self.last_heartbeat = time.monotonic()
            return accepted

        coordinator._do_heartbeat = do_heartbeat_and_record

    async def on_partitions_assigned(self, assigned: Any, generation: int = 0) -> None:
        """Count an assignment as a heartbeat: the coordinator has just accepted this process as a member."""
        self.last_heartbeat = time.monotonic()
        await super().on_partitions_assigned(assigned, generation)
