"""Set how long a broker may hold a fetch that finds nothing.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread._create_worker_consumer`) and aiokafka 0.14.0 (`AIOKafkaConsumer`).

Faust fixes the wait at 1,500 ms. The embedded broker holds a fetch that long even when a record arrives meanwhile.
"""

from typing import Any


def set_fetch_wait(consumer: Any, wait_ms: int) -> None:
    """Set the longest wait of a fetch, in milliseconds, of an aiokafka consumer that has not started."""
    consumer._fetch_max_wait_ms = wait_ms
