"""A server of the watch page with documents that a test sets: what the page does with any document can be shown."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.streams.watch.page import documents

PAGE = Path(__file__).parents[4] / "streams" / "watch" / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
Params = dict[str, str]


class FakeWatch:
    """Serves the page; `documents[view]` makes the whole document of a view, `send` streams a partial one."""

    def __init__(self) -> None:
        self.documents: dict[str, Callable[[Params], dict[str, Any] | None]] = {}
        self.reset()
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-watch", daemon=True)
        self._streams: dict[asyncio.Queue[dict[str, Any] | None], str] = {}
        self._runner: web.AppRunner | None = None

    def reset(self) -> None:
        """Serve the sample documents again."""
        self.documents = {
            "fleet": lambda params: documents.fleet(),
            "run": lambda params: documents.run(params["run"]),
            "decision": lambda params: documents.decision(run_id=params["run"]),
            "policy": lambda params: documents.policy(),
            "installation": lambda params: documents.installation(),
        }

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://127.0.0.1:{self.port}/"

    def send(self, document: dict[str, Any]) -> None:
        """Stream a document to all that watch its view."""
        self._loop.call_soon_threadsafe(self._put, document)

    def start_serving(self) -> None:
        """Listen; on the same port as before, if it was stopped."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def stop_serving(self) -> None:
        """End all connections and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    def watchers(self, view: str) -> int:
        """Return the number of open streams of a view."""
        return list(self._streams.values()).count(view)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start_serving()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop_serving()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _put(self, document: dict[str, Any]) -> None:
        for queue, view in self._streams.items():
            if view == document["view"]:
                queue.put_nowait(document)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/api/view/{view}", self._view)
        app.router.add_get("/api/stream/{view}", self._stream)
        app.router.add_static("/page/", PAGE)
        app.on_response_prepare.append(self._headers)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        for queue in self._streams:
            queue.put_nowait(None)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)

    async def _index(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    def _document(self, request: web.Request) -> dict[str, Any] | None:
        return self.documents[request.match_info["view"]](dict(request.query))

    async def _view(self, request: web.Request) -> web.Response:
        document = self._document(request)
        if document is None:
            return web.json_response({"problem": f"no run {request.query.get('run')}"}, status=404)
        return web.json_response(document)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        document = self._document(request)
        if document is None:
            return web.json_response({"problem": f"no run {request.query.get('run')}"}, status=404)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._streams[queue] = request.match_info["view"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            while document is not None:
                await response.write(f"data: {json.dumps(document)}\n\n".encode())
                document = await queue.get()
        except ConnectionResetError:
            pass
        finally:
            self._streams.pop(queue, None)
        return response
