"""Clients of a broker that is away ask again a few times a second, not as fast as they can.

aiokafka 0.14 waits nowhere when a connection is refused: a fetcher or sender without a leader asks for metadata, is
refused at once, and asks again, two thousand times a second (m) for the twelve clients of a worker, each with two lines
in the log. That is a whole core, taken from whatever is to start the broker again.
"""

import asyncio
from typing import Any

RETRY_S = 0.25  # a broker that has come back is found within it


def unhurried(client: Any) -> None:
    """Make an aiokafka client (a consumer's or producer's) wait a little whenever no broker answered it."""
    ask = client._metadata_update

    async def ask_and_wait(*arguments: Any) -> bool:
        answered = bool(await ask(*arguments))
        if not answered:
            await asyncio.sleep(RETRY_S)
        return answered

    client._metadata_update = ask_and_wait
