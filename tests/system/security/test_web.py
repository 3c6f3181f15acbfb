"""The web endpoints: local by default, read-only, and not blocked by slow or huge requests."""

import asyncio
import inspect

import httpx
import pytest

from tamiyo.streams.process.http_endpoint import HealthServer
from tamiyo.streams.settings import LearnerSettings, WorkerSettings


def served() -> HealthServer:
    return HealthServer(healthy=lambda: {"ok": True}, ready=lambda: {"ok": True})


def test_it_is_local_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAMIYO_WORKER_HTTP_HOST", "TAMIYO_LEARNER_HTTP_HOST"):
        monkeypatch.delenv(name, raising=False)
    assert WorkerSettings().http_host == LearnerSettings().http_host == "127.0.0.1"
    assert inspect.signature(HealthServer).parameters["host"].default == "127.0.0.1"

    async def listening() -> set[str]:
        server = served()
        await server.start()
        try:
            assert server._runner is not None
            return {address[0] for address in server._runner.addresses}
        finally:
            await server.stop()

    assert asyncio.run(listening()) == {"127.0.0.1"}


def test_nothing_can_be_written() -> None:
    async def ask() -> None:
        server = served()
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            for path in ("/metrics", "/healthz", "/readyz"):
                for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
                    assert (await client.request(method, path, content=b"x")).status_code == 405, (method, path)
            for path in ("/", "/../etc/passwd", "/metrics/../../etc/passwd", "/%2e%2e/etc/passwd", "/static/x"):
                assert (await client.get(path)).status_code == 404
        await server.stop()

    asyncio.run(ask())


def test_slow_and_huge_requests_do_not_block_others() -> None:
    async def ask() -> None:
        server = served()
        await server.start()
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(100)]
        for _, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")  # and never any more
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Huge: " + b"a" * 200_000 + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"400"
        body_reader, body = await asyncio.open_connection("127.0.0.1", server.port)
        body.write(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n" + b"a" * 100_000)
        assert (await asyncio.wait_for(body_reader.readline(), 10)).split()[1] == b"405"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.get("/healthz", timeout=10)).status_code == 200
        for _, each in [*held, (reader, writer), (body_reader, body)]:
            each.close()
        await asyncio.wait_for(server.stop(), 10)

    asyncio.run(ask())
