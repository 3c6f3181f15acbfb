"""Turn off Faust's check for stalled partitions.

Read against Faust 0.15.3 (`Consumer.verify_event_path`, `AIOKafkaConsumerThread.verify_event_path`).

Faust's check only logs, and ends the app with an AssertionError when it runs in the middle of a rebalance. The runner
has a check of its own (`streams/runtime/liveness.py`).
"""

from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP


class NoStallCheck(Consumer):  # type: ignore[misc]
    """A consumer that never checks for stalled partitions."""

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing."""
