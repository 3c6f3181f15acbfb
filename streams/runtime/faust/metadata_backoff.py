"""Wait between attempts to update metadata while no broker can be reached.

Read against aiokafka 0.14.0 (`AIOKafkaClient._metadata_update`).

aiokafka does not wait when a connection is refused: a fetcher or sender without a leader requests metadata, is refused
at once, and tries again, two thousand times a second (measured) for the twelve clients of a worker, each attempt with
two log lines. That takes a whole core from the broker that is about to start again.
"""

import asyncio
from typing import Any

RETRY_S = 0.25  # so a broker that has come back is found within a quarter of a second


def back_off_metadata(client: Any) -> None:
    """Make an aiokafka client (a consumer's or producer's) wait `RETRY_S` after each failed metadata update."""
    update = client._metadata_update

    async def update_or_wait(*arguments: Any) -> bool:
        updated = bool(await update(*arguments))
        if not updated:
            await asyncio.sleep(RETRY_S)
        return updated

    client._metadata_update = update_or_wait
