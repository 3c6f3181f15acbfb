"""The HTTP server of the page: its files, the views as documents, and streams of their changes.

Everything is read-only, and nothing leaves the machine: it listens on the loopback address unless another is given, and
accepts requests under its own names only, so that a foreign page cannot read it by a name that resolves to 127.0.0.1.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from tamiyo.schemas.display import finite
from tamiyo.schemas.errors import ConfigurationError, TamiyoError
from tamiyo.schemas.kafka import LOOPBACK
from tamiyo.streams.watch import PORT, views
from tamiyo.streams.watch.history import History
from tamiyo.streams.watch.stream import MAX_STREAMS, ViewStream, Wakes
from tamiyo.streams.watch.views import Document, UnknownIdError

PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
    "Server": "tamiyo",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
"""What the page's files are served as; files of other types are not served."""
PARAMETERS: dict[str, tuple[str, ...]] = {
    "fleet": (),
    "run": ("run",),
    "decision": ("run", "decision"),
    "policy": (),
    "installation": (),
}
"""The views, with the ids that each needs."""
MAX_ID = 1_000  # characters; no record has longer ids
TIME = re.compile(r"\d{1,15}")
STOP_S = 5.0
MAKERS = 2  # threads that make documents: a large one must not hold up the others

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WatchServer:
    """Serves the views of a history, in a thread with its own event loop. A context manager: it starts and stops.

    Example:
        >>> with WatchServer(History(), port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, history: History, *, host: str = LOOPBACK[1], port: int = PORT, page: Path = PAGE) -> None:
        """Prepare to serve.

        Args:
            history: What the views are made of.
            host: Address to listen on.
            port: Port to listen on; 0: any free one.
            page: Folder of the page's files.
        """
        self.history = history
        self.port = port
        """The port, the actual one once started."""
        self.host = host
        self.wakes = Wakes()
        """The streams that wait for changes."""
        self._page = page
        self._files = {each.relative_to(page).as_posix(): each for each in page.rglob("*") if each.suffix in TYPES}
        self._makers = ThreadPoolExecutor(MAKERS, thread_name_prefix="views")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="watch", daemon=True)
        self._runner: web.AppRunner | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"

    def __enter__(self) -> Self:
        """Start; raises ConfigurationError where the port cannot be used."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to serve; raises ConfigurationError where the address or port cannot be used."""
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all connections."""
        self._unsubscribe()
        if self._thread.is_alive():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(STOP_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)
        self._makers.shutdown(wait=False, cancel_futures=True)
        if not self._loop.is_running():
            self._loop.close()

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._index)
        app.router.add_get("/page/{name:.+}", self._file)
        app.router.add_get("/api/view/{view}", self._view)
        app.router.add_get("/api/stream/{view}", self._stream, allow_head=False)
        app.on_response_prepare.append(_add_headers)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, self.port).start()
        except (OSError, UnicodeError, OverflowError) as error:
            # asyncio repeats the address in the error's text; the number alone has the reason.
            number = getattr(error, "errno", None) or 0
            reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"cannot listen on {self.host}:{self.port} ({reason}); choose another --port (0: any free port)"
            ) from error
        self.port = int(self._runner.addresses[0][1])
        self.wakes.begin()
        self._unsubscribe = self.history.subscribe(self.wakes.changed)

    async def _stop(self) -> None:
        self.wakes.end()
        if self._runner is not None:
            await self._runner.cleanup()
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    # Requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests under a foreign name, and state each problem as JSON."""
        if not self._is_own_name(request.headers.get("Host", "")):
            return _problem(421, f"this server is {self.url}, and no other name")
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.path.startswith("/api/"):
            return _problem(403, "another site must not read this one")
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status in (404, 405):
                return _problem(error.status, "there is nothing at this address, and only GET is possible")
            raise
        except UnknownIdError as error:
            return _problem(404, str(error))
        except ValueError as error:
            return _problem(400, str(error))
        except TamiyoError as error:
            return _problem(503, str(error))

    def _is_own_name(self, host: str) -> bool:
        name = _host_name(host)
        if name in LOOPBACK or name == self.host.lower():
            return True
        if self.host in LOOPBACK:
            return False
        # It listens for other machines: they know it by an address or by its name, which no foreign page has.
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return name in {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def _index(self, _: web.Request) -> web.StreamResponse:
        return self._served("index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._served(request.match_info["name"])

    def _served(self, name: str) -> web.StreamResponse:
        path = self._files.get(name)  # a name from the list, so no path leads out of the folder
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Content-Type": TYPES[path.suffix]})

    async def _view(self, request: web.Request) -> web.StreamResponse:
        view, ids, times = _parameters(request, {"at", "after"})
        _, body = await self.make(view, ids, times.get("at"), times.get("after", 0))
        response = web.Response(body=body, content_type="application/json", charset="utf-8")
        response.enable_compression()
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        view, ids, _ = _parameters(request, set())
        if len(self.wakes) >= MAX_STREAMS:
            return _problem(503, f"{MAX_STREAMS} pages are open, and no more are served: close some")
        return await ViewStream(self, view, ids).respond(request)

    async def make(self, view: str, ids: Mapping[str, str], at_ms: int | None, after: int) -> tuple[int, bytes]:
        """Return a document's revision, and the document as JSON.

        Raises:
            UnknownIdError: There is no such run or decision.
        """
        if view == "installation":
            self.history.stages_wanted.note()
        return await self._loop.run_in_executor(self._makers, _made, self.history, view, ids, at_ms, after)


def _made(history: History, view: str, ids: Mapping[str, str], at_ms: int | None, after: int) -> tuple[int, bytes]:
    match view:
        case "fleet":
            document: Document = views.fleet(history, at_ms=at_ms, after=after)
        case "run":
            document = views.run(history, ids["run"], at_ms=at_ms, after=after)
        case "decision":
            document = views.decision(history, ids["run"], ids["decision"], at_ms=at_ms, after=after)
        case "policy":
            document = views.policy(history, at_ms=at_ms, after=after)
        case _:
            document = views.installation(history, at_ms=at_ms, after=after)
    return document["revision"], to_json(document)


def to_json(document: Document) -> bytes:
    """Return a document as JSON in ASCII, which has no NaN and no infinities: they are null."""
    try:
        text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(finite(document), allow_nan=False, separators=(",", ":"))
    return text.encode()


def _parameters(request: web.Request, optional: set[str]) -> tuple[str, dict[str, str], dict[str, int]]:
    """Return view, ids and times of a request; raises ValueError where a parameter is wrong."""
    view = request.match_info["view"]
    if view not in PARAMETERS:
        raise web.HTTPNotFound
    needed, given = PARAMETERS[view], request.query
    unknown = [name for name in given if name not in needed and name not in optional]
    repeated = [name for name in set(given) if len(given.getall(name)) > 1]
    missing = [name for name in needed if not given.get(name)]
    if unknown or repeated or missing:
        wanted = ", ".join([*needed, *(f"{name} (optional)" for name in sorted(optional))]) or "none"
        raise ValueError(f"the view {view} has these parameters, each once: {wanted}")
    ids = {name: given[name] for name in needed}
    if any(len(value) > MAX_ID for value in ids.values()):
        raise ValueError(f"expected an id of at most {MAX_ID} characters")
    times = {name: given[name] for name in optional if name in given}
    for name, value in times.items():
        if not (value.isascii() and TIME.fullmatch(value)):
            raise ValueError(f"expected a whole number of at most 15 digits as {name}")
    return view, ids, {name: int(value) for name, value in times.items()}


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _problem(status: int, text: str) -> web.Response:
    headers = {"Allow": "GET, HEAD"} if status == 405 else None
    return web.json_response({"problem": text}, status=status, headers=headers)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
