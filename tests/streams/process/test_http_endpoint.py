"""The HTTP endpoint."""

import asyncio
from importlib.metadata import version

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

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


def page(**settings: str) -> dict[str, list[Sample]]:
    """Return the samples of /metrics by name."""

    async def ask() -> str:
        server = HealthServer(healthy=lambda: {"ok": True}, ready=lambda: {"ok": True}, **settings)
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
            text = (await client.get("/metrics")).text
        await server.stop()
        return text

    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(asyncio.run(ask())):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_every_metric_has_the_prefix_as_a_label() -> None:
    samples = [sample for found in page(prefix="team-a.").values() for sample in found]
    assert samples
    assert {sample.labels["prefix"] for sample in samples} == {"team-a."}


def test_an_installation_without_a_prefix_has_no_such_label() -> None:
    samples = [sample for found in page().values() for sample in found]
    assert samples
    assert not any("prefix" in sample.labels for sample in samples)


def test_the_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMIYO_BUILD_COMMIT", "0123abc")
    wanted = {"version": version("esper-tamiyo"), "commit": "0123abc"}
    assert [sample.value for sample in page()["tamiyo_build_info"] if sample.labels == wanted] == [1]
