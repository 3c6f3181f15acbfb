"""Metrics and health of a training process."""

import socket
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.process.host_metrics import HostCollector, served
from tests.support.runs import run


def test_a_runs_counts_are_served_while_it_trains() -> None:
    made = run(sample_interval=1)
    made.transport.decide("optimize_parameters", layer="3")
    made.train(3)
    with served(made.handle, prefix="team-a.") as port:
        page = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").json() == {"ok": True, "step": made.handle.stats.step}
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        assert httpx.post(f"http://127.0.0.1:{port}/metrics").status_code == 405
    samples = [
        sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("tamiyo_host_")
    ]
    assert {(sample.labels.pop("prefix"), sample.labels.pop("run")) for sample in samples} == {
        ("team-a.", made.handle.run_id)
    }
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    stats = made.handle.stats
    assert found[("tamiyo_host_steps_total",)] == stats.step == 3
    assert found["tamiyo_host_decisions_total", "executed"] == stats.executed == 1
    assert found["tamiyo_host_records_total", "published"] == stats.published_records > 0
    assert found["tamiyo_host_parameters", "base"] == stats.parameters
    assert found["tamiyo_host_seconds_total", "training"] > 0
    assert "tamiyo_host_steps" not in {metric.name for metric in REGISTRY.collect()}


def test_parameters_are_split_into_base_network_and_kernels() -> None:
    stats = replace(run().handle.stats, parameters=100, kernel_parameters=30)
    families = HostCollector(SimpleNamespace(stats=stats)).collect()  # type: ignore[arg-type]
    (found,) = [family for family in families if family.name == "tamiyo_host_parameters"]
    assert {sample.labels["part"]: sample.value for sample in found.samples} == {"base": 70, "kernels": 30}


def test_a_port_in_use_is_an_error() -> None:
    made = run()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(ConfigurationError, match="cannot listen on"),
            served(made.handle, host="127.0.0.1", port=taken.getsockname()[1]),
        ):
            pass
