"""A measurement that fails costs its own number, and is logged once; frames go on."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import attach
from tamiyo.host._probes import activations, counterfactual, paired_latency, probes
from tamiyo.host._probes.counterfactual import HeldOutBatch
from tamiyo.host._probes.failures import Failures
from tamiyo.host._probes.growth_score import GrowthProbe
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.topics import KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE
from tests.support.runs import Run, run, settings


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_kind_of_failure_is_counted_always_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures()
    for layer_id in ("a", "b"):
        for error in (ValueError("no"), KeyError("no")):
            with failures.isolated("growth score", layer_id):
                raise error
    with failures.isolated("activations"):
        raise ValueError("no")
    assert failures.count == 5
    assert [message.split(";")[0] for message in warnings(caplog)] == [
        "cannot measure the growth score of layer a: ValueError: no",
        "cannot measure the growth score of layer a: KeyError: 'no'",
        "cannot measure the activations: ValueError: no",
    ]


def test_an_interruption_is_no_failure() -> None:
    with pytest.raises(KeyboardInterrupt), Failures().isolated("loss"):
        raise KeyboardInterrupt


def frames(made: Run) -> Iterator[tuple[Any, Any, Any]]:
    topics = KERNEL_PERFORMANCE, LAYER_HEALTH, MODEL_PERFORMANCE
    return zip(*([f for f in made.records(topic) if not f.final] for topic in topics), strict=True)


def failing(name: str, layer_id: str = "0") -> Any:
    """Return a replacement of a function that raises at one layer."""
    original = {
        "score": GrowthProbe.score,
        "unit_values": probes.unit_values,
        "activation_stats": activations.activation_stats,
        "paired_latency": paired_latency.paired_latency,
    }[name]

    def replaced(first: Any, *args: Any, **kwargs: Any) -> Any:
        at_layer = {
            "score": lambda: first.spec.layer_id == layer_id,
            "unit_values": lambda: first.shape == (16, 3, 4),
            "activation_stats": lambda: len(first) == 3,
            "paired_latency": lambda: first.layer_id == layer_id,
        }[name]
        if at_layer():
            raise RuntimeError("out of memory")
        return original(first, *args, **kwargs)

    return replaced


@pytest.mark.parametrize(
    ("owner", "name", "columns"),
    [
        (GrowthProbe, "score", ("growth_score",)),
        (probes, "unit_values", ()),
        (activations, "activation_stats", ()),
        (paired_latency, "paired_latency", ("base_latency_ms", "kernel_latency_ms")),
    ],
)
def test_one_layers_failure_costs_its_own_number(
    owner: Any, name: str, columns: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = run(growth_interval=2)
    made.load()
    made.train(2)
    monkeypatch.setattr(owner, name, failing(name))
    made.train(10)
    made.handle.close()
    assert [health.step for _, health, _ in frames(made)] == [2, 4, 6, 8, 10, 12]
    for performance, health, _ in list(frames(made))[1:]:
        assert performance.layer_id == (["0", "3", "5"] if columns else ["3", "5"])
        assert health.layer_id == ["0", "3", "5"]
        for column in ("growth_score", "base_latency_ms", "kernel_latency_ms"):
            assert [v is None for v in getattr(health, column)] == [column in columns, False, False]
    assert made.handle.stats.errors >= 5
    assert len([w for w in warnings(caplog) if "out of memory" in w]) == 1


def test_gradients_that_cannot_be_measured_cost_only_themselves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tamiyo.host._probes.gradients._norms", lambda _: 1 / 0)
    made = run()
    made.train(6)
    assert [(activations.layer_id, health.layer_id) for activations, health, _ in frames(made)] == [
        (["0", "3", "5"], [])
    ] * 3
    assert len(warnings(caplog)) == 1


def test_a_held_out_loss_that_fails_costs_the_contributions(caplog: pytest.LogCaptureFixture) -> None:
    made = run()
    held_out = made.handle._sampler._held_out
    assert held_out is not None
    made.train(1)
    made.load()
    made.train(3)
    held_out._loss_fn = lambda *_: torch.ones(2)
    made.train(4)
    assert [health.contribution[0] is None for _, health, _ in frames(made)] == [True, False, True, True]
    assert [model.step for _, _, model in frames(made)] == [2, 4, 6, 8]
    assert made.handle.stats.errors == 2
    assert len(warnings(caplog)) == 1


def test_copies_of_a_held_out_batch_share_their_failures() -> None:
    held_out = HeldOutBatch(nn.Linear(2, 2), F.cross_entropy, torch.ones(1, 3), torch.ones(1))
    assert held_out.of(nn.Linear(3, 2)).loss() is None  # floats as labels of one class each
    assert held_out.loss() is None
    assert held_out.failures.count == 2


def test_frames_go_on_in_double_precision_by_default(caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters())
        transport = MemoryTransport()
        handle = attach(
            model, optimizer, example_input=torch.randn(4, 8),
            settings=settings(sample_interval=5, growth_interval=20), transport=transport,
        )  # fmt: skip
        for _ in range(100):
            loss = model(torch.randn(4, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            handle.step(loss=loss)
    finally:
        torch.set_default_dtype(torch.float32)
    found = transport.records(LAYER_HEALTH.name)
    assert [frame.step for frame in found] == list(range(5, 101, 5))
    assert all(frame.layer_id == ["0", "2"] for frame in found)
    assert len(warnings(caplog)) <= 1


def test_frames_go_on_when_a_transport_or_an_optimiser_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run()
    monkeypatch.setattr("tamiyo.host._sampling.sampler.memory_bytes", lambda *_: 1 / 0)
    made.train(4)
    assert [(model.step, model.memory_bytes) for _, _, model in frames(made)] == [(2, 0), (4, 0)]
    assert made.handle.stats.errors == 2


def test_counterfactual_module_has_no_failure_in_a_healthy_run() -> None:
    made = run()
    made.load()
    made.train(6)
    assert made.handle.stats.errors == 0
    assert isinstance(made.handle._sampler._held_out, counterfactual.HeldOutBatch)


def test_an_empty_batch_is_not_measured_and_no_failure() -> None:
    made = run()
    for _ in range(4):
        output: Tensor = made.model(torch.zeros(0, 2, 8))
        made.optimizer.zero_grad()
        output.sum().backward()  # type: ignore[no-untyped-call]
        made.optimizer.step()
        made.handle.step(loss=output.sum())
    assert [activations.layer_id for activations, _, _ in frames(made)] == [[], []]
    assert made.handle.stats.errors == 0
