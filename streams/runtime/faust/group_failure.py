"""Expose why a consumer's membership of its group failed, and let it try again.

Read against Faust 0.15.3 (`AIOKafkaConsumerThread`) and aiokafka 0.14.0 (`GroupCoordinator.check_errors`,
`_push_error_to_user`).

aiokafka pauses group coordination after a failure until the next fetch raises it. Faust fetches nothing while nothing
is assigned, so a refused SyncGroup would never be tried again.
"""

from contextlib import suppress

from aiokafka.errors import KafkaError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread


class GroupFailure(AIOKafkaConsumerThread):  # type: ignore[misc]
    """A consumer thread whose failures of group coordination can be seen and cleared."""

    @property
    def group_failure(self) -> BaseException | None:
        """Why membership of the group has ended, or is paused until `clear_group_failure`; None while it is well."""
        coordinator = self._consumer._coordinator if self._consumer is not None else None
        task = getattr(coordinator, "_coordination_task", None)
        if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
            ended: BaseException = task.exception()
            return ended
        pending: BaseException | None = getattr(coordinator, "_pending_exception", None)
        return pending

    async def clear_group_failure(self) -> None:
        """Take the pending failure, whereupon aiokafka tries to join the group again."""
        await self.call_thread(self._clear_group_failure)

    async def _clear_group_failure(self) -> None:
        with suppress(KafkaError):
            self._ensure_consumer()._coordinator.check_errors()
