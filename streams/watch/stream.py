"""Server-sent events: a view's document, and then what changes of it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

from tamiyo.streams.watch import views
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.views import UnknownIdError

MAX_STREAMS = 100
EVENT_S = 0.05  # between two events of a stream, at least: a screen shows no more than that
SLOW_S = {"installation": 1.0, "policy": 0.5}
"""Views that are seldom of interest by the moment."""
READING_S = 0.25  # between two events while the history is read: both need the processor
SOURCE_S = 1.0  # between two events that only have newer facts of the source
HEARTBEAT_S = 15.0  # by then a connection that was cut is found out
WRITE_S = 30.0  # a client that takes nothing for so long is dropped
APPEAR_S = 20.0  # that a stream of an unknown run waits for it while the history is read


class Wakes:
    """Wakes the streams of an event loop when the history changes, from any thread."""

    def __init__(self) -> None:
        """Know no stream."""
        self._events: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self.ended = False
        """Whether the server stops."""

    def __len__(self) -> int:
        """Return the number of open streams."""
        return len(self._events)

    def begin(self) -> None:
        """Wake streams of the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def add(self) -> asyncio.Event:
        """Return a new stream's event."""
        event = asyncio.Event()
        self._events.add(event)
        return event

    def remove(self, event: asyncio.Event) -> None:
        """Forget a stream."""
        self._events.discard(event)

    def changed(self) -> None:
        """Wake all streams; many calls before they wake count once."""
        if self._loop is not None and not self._scheduled and not self.ended:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:  # the loop was closed meanwhile
                self.ended = True

    def end(self) -> None:
        """End all streams."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._scheduled = False
        for event in self._events:
            event.set()


class Maker(Protocol):
    """What a stream needs of the server."""

    history: History
    wakes: Wakes

    async def make(self, view: str, ids: Mapping[str, str], at_ms: int | None, after: int) -> tuple[int, bytes]:
        """Return a document's revision, and the document as JSON."""


class ViewStream:
    """One client's stream of one view.

    A document is made when it can be sent. A slow client so gets the newest state, and nothing queues up for it.
    """

    def __init__(self, server: Maker, view: str, ids: Mapping[str, str]) -> None:
        """Prepare the stream."""
        self._server = server
        self._history = server.history
        self._view = view
        self._ids = ids
        self._sent_revision = 0
        self._sent_source: Any = None
        self._sent_s = 0.0

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Send documents until the client or the server goes.

        Raises:
            UnknownIdError: There is no such run or decision.
        """
        wakes = self._server.wakes
        wake = wakes.add()
        try:
            await self._wait_for_id(wake)
            first = await self._document()
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
            await response.prepare(request)
            try:
                await self._send(response, first, wake)
            except (UnknownIdError, ConnectionError):
                pass  # the run is no longer kept, or the client is gone: it may connect again
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()  # else the end of the response waits for the client as well
            return response
        finally:
            wakes.remove(wake)

    async def _send(self, response: web.StreamResponse, first: bytes, wake: asyncio.Event) -> None:
        wakes = self._server.wakes
        await self._write(response, b"retry: 1000\n\n" + first)
        while not wakes.ended:
            await self._next_change(wake, response)
            if not wakes.ended:
                await self._write(response, await self._document())

    async def _wait_for_id(self, wake: asyncio.Event) -> None:
        """Wait for the stream's run or decision while the history is read."""
        deadline = time.monotonic() + APPEAR_S
        while (
            self._ids
            and self._history.source.reading
            and not self._changed_at()
            and not self._server.wakes.ended
            and time.monotonic() < deadline
        ):
            wake.clear()
            await _until(wake, READING_S)

    def _changed_at(self) -> int:
        return views.changed_at(self._history, self._view, self._ids.get("run", ""), self._ids.get("decision", ""))

    async def _next_change(self, wake: asyncio.Event, response: web.StreamResponse) -> None:
        """Return when there is something to send; send heartbeats meanwhile."""
        beat = time.monotonic()
        while not self._server.wakes.ended:
            due = self._due_s()
            if due is not None:
                wait = self._sent_s + due - time.monotonic()
                if wait <= 0:
                    return
                await asyncio.sleep(min(wait, SOURCE_S))
                continue
            wake.clear()
            if self._due_s() is None and not await _until(wake, beat + HEARTBEAT_S - time.monotonic()):
                await self._write(response, b": still here\n\n")
                beat = time.monotonic()

    def _due_s(self) -> float | None:
        """Return how long after the last event the next is due; None: there is nothing new."""
        source = self._history.source
        urgent = (source.problem, source.reading)
        if self._sent_source is None or urgent != self._sent_source[0]:
            return EVENT_S
        if self._changed_at() > self._sent_revision:
            return READING_S if source.reading else SLOW_S.get(self._view, EVENT_S)
        if (source.records, source.total) != self._sent_source[1]:
            return SOURCE_S
        return None

    async def _document(self) -> bytes:
        source = self._history.source
        self._sent_source = ((source.problem, source.reading), (source.records, source.total))
        # Its own revision, since the history may have changed before it was made: nothing may be sent twice.
        self._sent_revision, body = await self._server.make(self._view, self._ids, None, self._sent_revision)
        return b"data: " + body + b"\n\n"

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        await asyncio.wait_for(response.write(data), WRITE_S)
        self._sent_s = time.monotonic()


async def _until(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event; return whether it came."""
    try:
        await asyncio.wait_for(event.wait(), max(0.0, timeout_s))
    except TimeoutError:
        return False
    return True
