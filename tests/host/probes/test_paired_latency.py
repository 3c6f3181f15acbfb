"""What kernels cost in time, in pairs."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes import paired_latency as module
from tamiyo.host._probes.failures import Failures
from tamiyo.host._probes.paired_latency import LatencyProbe, PairedLatency, paired_latency
from tamiyo.host.blueprints import Kernel
from tests.support.layers import kernel


def spin(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


class Slow(nn.Linear):
    """A layer that needs 2 ms of processor time."""

    def forward(self, input: Tensor) -> Tensor:
        spin(0.002)
        return super().forward(input)


def slowed(fresh: Kernel, seconds: float) -> Kernel:
    plain = fresh.forward

    def forward(*inputs: Any) -> Tensor:
        spin(seconds)
        return plain(*inputs)

    fresh.forward = forward  # type: ignore[method-assign]
    return fresh


def layer(layer_id: str = "0") -> KasminaLayer:
    return KasminaLayer(layer_id=layer_id, input_size=5, output_size=7, num_seeds=2, ramp_steps=0)


def grown(seconds: float) -> KasminaLayer:
    made = layer()
    made.load_kernel(slowed(kernel(made.spec, seed=1), seconds), kernel_id="ab" * 4, blueprint="bottleneck", step=0)
    return made


def test_what_a_kernel_adds_is_its_own_processor_time() -> None:
    made = grown(0.004)
    made.base = Slow(5, 7)
    found = paired_latency(made, 4, pairs=9)  # a busy neighbour empties the caches: the passes' own time varies
    assert found is not None
    assert found.base_ms == pytest.approx(2, abs=0.5)
    assert found.kernel_ms == pytest.approx(4, abs=0.5)


def test_time_that_others_take_does_not_count() -> None:
    made = grown(0.0)
    made.base.register_forward_hook(lambda *_: time.sleep(0.005))
    found = paired_latency(made, 4)
    assert found is not None
    assert found.base_ms < 2


def test_a_permanent_kernel_is_part_of_the_base() -> None:
    made = grown(0.004)
    made.fossilize(0)
    found = paired_latency(made, 4)
    assert found is not None
    assert found.kernel_ms == 0
    assert found.base_ms > 3.5


def test_measuring_changes_neither_counters_nor_modes_nor_random_state() -> None:
    made = grown(0.0)
    made(torch.zeros(2, 5))
    before = (made.get_layer_stats(), torch.get_rng_state().tolist(), made.training)
    paired_latency(made, 4)
    assert (made.get_layer_stats(), torch.get_rng_state().tolist(), made.training) == before


def test_layers_without_kernels_are_measured_once_for_each_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int]] = []

    def record(each: KasminaLayer, batch: int) -> PairedLatency:
        measured.append((each.layer_id, batch))
        return PairedLatency(1.0, 0.5)

    monkeypatch.setattr(module, "paired_latency", record)
    bare, other = layer("0"), grown(0.0)
    probe = LatencyProbe({"0": bare, "1": other}, Failures())
    assert not probe.started
    assert probe.measure(4) == probe.measure(4) == {"0": PairedLatency(1.0, 0.5), "1": PairedLatency(1.0, 0.5)}
    assert probe.started
    assert measured == [("0", 4), ("0", 4), ("0", 4)]  # the grown one twice; both are named "0"
    probe.measure(8)
    assert measured[3:] == [("0", 8), ("0", 8)]


def test_a_layer_is_measured_again_when_its_kernel_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer()
    probe = LatencyProbe({"0": made}, Failures())
    bare = probe.measure(4)["0"]
    made.load_kernel(kernel(made.spec, seed=1), kernel_id="ab" * 4, blueprint="bottleneck", step=0)
    assert probe.measure(4)["0"].kernel_ms != 0
    made.unload()
    made.advance(1)
    again = probe.measure(4)["0"]
    assert again.kernel_ms == 0
    assert again is not bare
