"""Hand a fetched message to its stream directly, without the tasks Faust makes for each, and wait only for room.

Read against Faust 0.15.3 (`Consumer._drain_messages`, `Consumer._wait_next_records`, `Consumer.on_buffer_full`,
`ConductorCompiler.build`) and mode-streaming 0.7.1 (`Service.wait_first`).

Faust's loop over fetched messages races two coroutines for each message (hand it over, or the flow is suspended): four
tasks a message. When a queue is nearly full it leaves the partition out of the next fetches, and sleeps a whole second
once all are left out.
"""

from typing import Any

from faust.transport.drivers.aiokafka import Consumer
from faust.types import TP


class DirectHandover(Consumer):  # type: ignore[misc]
    """A consumer that hands messages over without a race where handing over cannot block."""

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a full queue makes the fetching loop wait for room."""

    async def wait_first(self, *waiting: Any, **options: Any) -> Any:
        """Wait for the first of several; hand a message over directly if there is room for it.

        Outside a rebalance, with the producer's buffer empty and no stream's queue full, handing over does not block,
        so there is nothing to race.
        """
        if len(waiting) == 2 and not options and self._handover_cannot_block():
            message, suspended = waiting
            suspended.close()
            return await message
        return await super().wait_first(*waiting, **options)

    def _handover_cannot_block(self) -> bool:
        app = self.app
        return (
            self.flow_active
            and app.flow_control.is_active()
            and not app.producer.buffer.pending.qsize()
            and not any(channel.queue.full() for channel in app.topics)
        )
