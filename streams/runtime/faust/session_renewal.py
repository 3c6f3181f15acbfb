"""Open a new connection before the broker ends the session of the old one.

Read against aiokafka 0.14.0 (`AIOKafkaConnection.send`, `AIOKafkaConnection.close`, `AIOKafkaConnection.connected`,
`AIOKafkaConnection._do_sasl_handshake`, `AIOKafkaClient._get_conn`, `AIOKafkaClient.send`).

A broker with `connections.max.reauth.ms` lets a login last so long, and a token of OAUTHBEARER no longer than itself.
Java's clients and librdkafka log in again on the open connection. aiokafka does not, so the broker closes the
connection at the first request after that time. Nothing is lost by it, since the request was not handled and is sent
again. But a dozen errors are logged each time, the coordinator counts as dead, and records wait.
"""

import time
from collections.abc import Awaitable
from typing import Any
from weakref import WeakKeyDictionary

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.protocol.admin import SaslAuthenticateRequest

RENEWED_AT = 0.8  # of a session: a request that waits the longest, half a second, is over before its end

_renewed_at: WeakKeyDictionary[AIOKafkaConnection, float] = WeakKeyDictionary()
"""By connection, the monotonic time from which it is replaced where it has no request under way."""

_send = AIOKafkaConnection.send
_get_conn = AIOKafkaClient._get_conn


def _sending(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Awaitable[Any]:
    sent: Awaitable[Any] = _send(self, request, expect_response)
    return _logged_in(self, sent) if isinstance(request, SaslAuthenticateRequest) else sent


async def _logged_in(connection: AIOKafkaConnection, sent: Awaitable[Any]) -> Any:
    began, response = time.monotonic(), await sent
    lifetime_ms = getattr(response, "session_lifetime_ms", 0)
    if lifetime_ms > 0:  # 0: without an end, or the broker is older than such sessions
        _renewed_at[connection] = began + RENEWED_AT * lifetime_ms / 1000
    return response


async def _connected(
    self: AIOKafkaClient, node_id: int, *, group: ConnectionGroup = ConnectionGroup.DEFAULT, no_hint: bool = False
) -> Any:
    connection = self._conns.get((node_id, group))
    over = connection is not None and time.monotonic() >= _renewed_at.get(connection, float("inf"))
    if over and not connection._requests:
        connection.close(reason=CloseReason.IDLE_DROP)
    return await _get_conn(self, node_id, group=group, no_hint=no_hint)


def renew_sessions() -> None:
    """Make every aiokafka client of this process replace its connections before their sessions end."""
    AIOKafkaConnection.send = _sending
    AIOKafkaClient._get_conn = _connected
