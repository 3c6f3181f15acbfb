"""The HTTP endpoint."""

import asyncio

import httpx

from tamiyo.streams.process.http_endpoint import HealthServer


def test_metrics_and_probes() -> None:
    ready = {"ok": False, "why": "not assigned"}

    async def ask() -> None:
        server = HealthServer(healthy=lambda: {"ok": True}, ready=lambda: ready)
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.get("/healthz")).status_code == 200
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.json()) == (503, ready)
            ready["ok"] = True
            assert (await client.get("/readyz")).status_code == 200
            metrics = await client.get("/metrics")
            assert "python_info" in metrics.text
            assert metrics.headers["content-type"].startswith("text/plain")
            assert (await client.get("/nothing")).status_code == 404
        await server.stop()

    asyncio.run(ask())
