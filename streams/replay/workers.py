"""The worker processes of a replay."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tamiyo.schemas.errors import BrokerError
from tamiyo.streams.admin.brokers import free_ports
from tamiyo.streams.process.children import Children

READY_TIMEOUT_S = 120.0
POLL_S = 0.1


@contextmanager
def replay_workers(
    stages: Sequence[str], count: int, environment: Mapping[str, str], meanwhile: Callable[[], None]
) -> Iterator[Children]:
    """Run stages in `count` processes within the block, which begins when they are ready.

    `meanwhile` is called while they start, and may raise to end that.
    """
    chosen = [argument for name in stages for argument in ("--stage", name)]
    with (
        tempfile.TemporaryDirectory(prefix="tamiyo-replay-") as folder,
        Children(Path(folder), environment) as children,
    ):
        ports = free_ports(count)
        for number, port in enumerate(ports, 1):
            children.start(f"worker-{number}", ["worker", *chosen, "--http-port", str(port)])
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not all(_ready(port) for port in ports):
            meanwhile()
            children.check(children.names())
            if time.monotonic() > deadline:
                raise BrokerError(f"the workers were not ready within {READY_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        yield children


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False
