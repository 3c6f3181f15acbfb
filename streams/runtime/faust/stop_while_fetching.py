"""Stop a consumer whose fetch has just failed.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread.on_thread_stop`) and aiokafka 0.14.0 (`AIOKafkaConsumer.stop`,
`Fetcher.close`, `Fetcher._proc_fetch_request`).

A fetch that failed waits before the next one, and aiokafka does not expect to be stopped in that wait: the cancellation
of the fetch ends the consumer's thread before it has reported its end, for which the process waits until its timeout.
"""

import asyncio

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread


class StopWhileFetching(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread that stops in order while the broker is away."""

    async def on_thread_stop(self) -> None:
        """Stop the consumer."""
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # somebody cancelled the stop itself
            await self._ensure_consumer()._client.close()  # the one step that `stop` had left
