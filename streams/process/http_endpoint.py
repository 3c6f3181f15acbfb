"""The HTTP endpoint of a pipeline process: /metrics, /healthz, /readyz."""

from collections.abc import Callable, Mapping
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from tamiyo.schemas.errors import ConfigurationError

log = structlog.get_logger(__name__)

SHUTDOWN_S = 1.0
Probe = Callable[[], Mapping[str, Any]]
"""Returns a state as JSON values; its entry `ok` decides between status 200 and 503."""


class HealthServer:
    """Serves the process's metrics, a liveness probe and a readiness probe, in the running event loop."""

    def __init__(self, *, healthy: Probe, ready: Probe, host: str = "127.0.0.1", port: int = 0) -> None:
        self._healthy = healthy
        self._ready = ready
        self._host = host
        self._wanted_port = port
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The actual port, once started."""

    async def start(self) -> None:
        """Start listening; the log names the port. Raises ConfigurationError where the port cannot be used."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._metrics),
                web.get("/healthz", self._probe(self._healthy)),
                web.get("/readyz", self._probe(self._ready)),
            ]
        )
        # By default aiohttp, and so the process's stop, waits a minute for a request that never ends.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._wanted_port)
        try:
            await site.start()
        except (OSError, UnicodeError) as error:  # UnicodeError: the host is no name that can be looked up
            await self.stop()
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(
                f"cannot listen on {self._host}:{self._wanted_port} ({reason}); choose another --http-port (0: any "
                "free port) or TAMIYO_WORKER_HTTP_HOST"
            ) from error
        self.port = int(self._runner.addresses[0][1])
        log.info("serving metrics and health", url=f"http://{self._host}:{self.port}/metrics")

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @staticmethod
    async def _metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @staticmethod
    def _probe(probe: Probe) -> Callable[[web.Request], Any]:
        async def respond(_: web.Request) -> web.Response:
            state = probe()
            return web.json_response(dict(state), status=200 if state.get("ok") else 503)

        return respond
