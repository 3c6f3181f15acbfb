"""Stop a consumer at once, while its group waits for another member and while a failed fetch waits.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread.on_thread_stop`) and aiokafka 0.14.0 (`AIOKafkaConsumer.stop`,
`GroupCoordinator.close`, `GroupCoordinator.need_rejoin`, `GroupCoordinator._maybe_leave_group`, `Fetcher.close`,
`Fetcher._proc_fetch_request`).

1. aiokafka lets a join end before it stops. A broker answers a join when every member has joined or has been given up:
   after a session for one that has died, after an hour for one that sends heartbeats and hangs. Until it has answered,
   it reads nothing more of that connection, so the group is left over the other one.
2. A fetch that failed waits before the next one, and aiokafka does not expect to be stopped in that wait: the
   cancellation of the fetch ends the consumer's thread before it has reported its end, for which the process waits
   until its timeout.
"""

import asyncio
from contextlib import suppress
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

LEAVE_TIMEOUT_S = 2.0


class PromptStop(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread that stops in order whatever its group and its broker do."""

    async def on_thread_stop(self) -> None:
        """Stop the consumer."""
        if self._consumer is not None and isinstance(self._consumer._coordinator, GroupCoordinator):
            await self._give_up_join(self._consumer._coordinator)
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            if _stop_is_cancelled():
                raise
            await self._ensure_consumer()._client.close()  # the one step that `stop` had left

    async def _give_up_join(self, coordinator: Any) -> None:
        subscription = coordinator._subscription.subscription
        if subscription is None or not coordinator.need_rejoin(subscription):
            return
        coordination, node = coordinator._coordination_task, coordinator.coordinator_id
        coordination.cancel()
        await asyncio.wait([coordination])
        if node is not None and coordinator.member_id:
            leave = LeaveGroupRequest(coordinator.group_id, coordinator.member_id)
            sending = self._ensure_consumer()._client.send(node, leave, group=ConnectionGroup.DEFAULT)
            with suppress(KafkaError, TimeoutError):  # else the group gives the member up after a session
                await asyncio.wait_for(sending, LEAVE_TIMEOUT_S)
        coordinator.reset_generation()


def _stop_is_cancelled() -> bool:
    """Return whether somebody has cancelled the stop itself, rather than what it waits for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
