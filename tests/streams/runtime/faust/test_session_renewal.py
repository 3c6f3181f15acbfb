"""A connection is replaced before its session ends, unless a request is under way on it."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.protocol.metadata import MetadataRequest

from tamiyo.streams.runtime.faust import session_renewal
from tamiyo.streams.runtime.faust.session_renewal import RENEWED_AT

KEY = (1, ConnectionGroup.DEFAULT)


class FakeConnection(SimpleNamespace):
    """A connection, by identity."""

    __hash__ = object.__hash__
    closed: CloseReason | None = None

    def close(self, *, reason: CloseReason) -> None:
        self.closed = reason


class Sessions:
    """Logs in and asks for the connection, at given times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lifetime_ms: int | None) -> None:
        self.now = 100.0
        self.connection = FakeConnection(_requests=[])
        given: Any = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(session_renewal, "time", given)
        fields = {} if lifetime_ms is None else {"session_lifetime_ms": lifetime_ms}

        async def response() -> Any:
            return SimpleNamespace(**fields)

        async def get_conn(client: Any, node_id: int, *, group: Any, no_hint: bool) -> Any:
            return client._conns[node_id, group]

        monkeypatch.setattr(session_renewal, "_send", lambda conn, request, expect_response: response())
        monkeypatch.setattr(session_renewal, "_get_conn", get_conn)

    async def log_in(self) -> None:
        await session_renewal._sending(self.connection, SaslAuthenticateRequest(b"token"))

    async def connect(self) -> CloseReason | None:
        client = SimpleNamespace(_conns={KEY: self.connection})
        await session_renewal._connected(client, 1)
        return self.connection.closed


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sessions]:
    return lambda lifetime_ms: Sessions(monkeypatch, lifetime_ms)


def test_a_connection_is_replaced_shortly_before_its_session_ends(sessions: Callable[..., Sessions]) -> None:
    async def scene() -> None:
        one = sessions(10_000)
        await one.log_in()
        one.now += 10 * RENEWED_AT - 0.1
        assert await one.connect() is None
        one.now += 0.2
        assert await one.connect() is CloseReason.IDLE_DROP

    asyncio.run(scene())


def test_a_request_under_way_is_waited_for(sessions: Callable[..., Sessions]) -> None:
    async def scene() -> None:
        one = sessions(10_000)
        await one.log_in()
        one.now += 9
        one.connection._requests.append("fetch")
        assert await one.connect() is None
        one.connection._requests.clear()
        assert await one.connect() is CloseReason.IDLE_DROP

    asyncio.run(scene())


@pytest.mark.parametrize("lifetime_ms", [0, None])
def test_a_session_without_an_end_stays(sessions: Callable[..., Sessions], lifetime_ms: int | None) -> None:
    async def scene() -> None:
        one = sessions(lifetime_ms)
        await one.log_in()
        one.now += 10**9
        assert await one.connect() is None

    asyncio.run(scene())


def test_other_requests_change_nothing(sessions: Callable[..., Sessions]) -> None:
    async def scene() -> None:
        one = sessions(10_000)
        await session_renewal._sending(one.connection, MetadataRequest([]))
        one.now += 10**9
        assert await one.connect() is None

    asyncio.run(scene())
