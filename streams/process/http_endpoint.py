"""The HTTP endpoint of a process: /metrics, /healthz, /readyz."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from importlib.metadata import version
from typing import Any

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import Metric

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.settings import BuildSettings

log = structlog.get_logger(__name__)

SHUTDOWN_S = 1.0
Probe = Callable[[], Mapping[str, Any]]
"""Returns a state as JSON values; its entry `ok` decides between status 200 and 503."""

BUILD = Gauge("tamiyo_build_info", "1, with the release and the commit that the process runs.", ["version", "commit"])


def labelled(family: Metric, labels: Mapping[str, str]) -> Metric:
    """Return a copy of a family with labels added to each sample."""
    found = copy(family)  # some collectors return the same objects every time
    found.samples = [each._replace(labels={**labels, **each.labels}) for each in family.samples]
    return found


class PrefixedRegistry(CollectorRegistry):
    """The process's registry, each of its samples with the installation's topic prefix as the label `prefix`.

    It distinguishes installations that share a Prometheus. An empty prefix is no label, as in Prometheus itself.
    """

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._labels = {"prefix": prefix} if prefix else {}

    def collect(self) -> Iterator[Metric]:
        """Return the current metric families."""
        return (labelled(family, self._labels) for family in REGISTRY.collect())


class HealthServer:
    """Serves the process's metrics, a liveness probe and a readiness probe, in the running event loop."""

    def __init__(
        self, *, healthy: Probe, ready: Probe, prefix: str = "", host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._registry = PrefixedRegistry(prefix)
        self._healthy = healthy
        self._ready = ready
        self._host = host
        self._wanted_port = port
        self._runner: web.AppRunner | None = None
        self.port = 0
        """The actual port, once started."""

    async def start(self) -> None:
        """Start listening; the log names the port. Raises ConfigurationError where the port cannot be used."""
        BUILD.labels(version("esper-tamiyo"), BuildSettings().commit).set(1)
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

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @staticmethod
    def _probe(probe: Probe) -> Callable[[web.Request], Any]:
        async def respond(_: web.Request) -> web.Response:
            state = probe()
            return web.json_response(dict(state), status=200 if state.get("ok") else 503)

        return respond
