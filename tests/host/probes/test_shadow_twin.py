"""Shadow twins: the copy is exact, the loop never notices it, and its gain is that of a second complete run."""

import copy
import logging
import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tamiyo.host import Handle, attach
from tamiyo.host._common import clock
from tamiyo.host._common.clock import SystemClock
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import SeedState
from tamiyo.host._probes import shadow_twin
from tamiyo.host._probes.shadow_twin import TwinResult
from tamiyo.host._reference.tasks import load_task
from tamiyo.host._reference.train import Workload, evaluate, steps
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.telemetry import LayerHealth
from tests.support.layers import attached_layer
from tests.support.runs import settings

TWIN_STEPS = 12


def network() -> nn.Sequential:
    """Everything with state: BatchNorm's buffers, dropout's random stream, and two layers to adapt."""
    return nn.Sequential(
        nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(24, 4)
    )


def batch(number: int) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(16, 2, 8, generator=torch.Generator().manual_seed(number))
    return inputs, (inputs[:, 0].mean(dim=1) > 0).long()


@dataclass
class Loop:
    """A training loop with weight decay and a learning rate that changes at every step."""

    budget: float = 1.0
    accumulate: int = 1
    scaled: bool = False
    held_out: bool = True
    clip: bool = False
    draws: bool = False
    """Whether the loop draws from the global random streams as well, after each step."""
    planned_steps: int | None = 10_000
    change: Callable[[nn.Module], object] = lambda _: None
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    drawn: list[float] = field(default_factory=list)
    done: int = 0
    decisions: list[tuple[str, str, str | None]] = field(default_factory=list)
    """What arrives at the end of the next optimiser step."""

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.model = network()
        self.change(self.model)
        self.optimizer = self.optimizer_class(self.model.parameters(), lr=0.02, weight_decay=0.1)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        self.scaler = torch.amp.GradScaler("cpu", enabled=self.scaled, init_scale=8.0)
        self.transport = MemoryTransport()
        self.handle = attach(
            self.model,
            self.optimizer,
            example_input=batch(0)[0],
            run_id="run",  # kernels are drawn from their ids
            loss_fn=F.cross_entropy,
            held_out=batch(10_000) if self.held_out else None,
            planned_steps=self.planned_steps,
            twin_budget=self.budget,
            settings=settings(twin_steps=TWIN_STEPS, **self.options),
            transport=self.transport,
        )

    @property
    def twin(self) -> shadow_twin.ShadowTwin:
        assert self.handle._twin is not None
        return self.handle._twin

    @property
    def layer(self) -> KasminaLayer:
        return attached_layer(self.model, "0")

    def train(self, steps: int) -> "Loop":
        for _ in range(steps):
            self.optimizer.zero_grad()
            for micro in range(self.accumulate):
                inputs, labels = batch(self.done * self.accumulate + micro)
                loss = F.cross_entropy(self.model(inputs), labels)
                self.losses.append(float(loss.detach()))
                self.scaler.scale(loss / self.accumulate).backward()
                if micro == self.accumulate - 1:
                    self.scaler.unscale_(self.optimizer)
                    if self.clip:
                        nn.utils.clip_grad_norm_(self.model.parameters(), 1e-3)
                    self.scaler.step(self.optimizer)
                    self.scaler.update()
                    self.scheduler.step()
                    for kind, layer, blueprint in self.decisions:
                        self.transport.decide(kind, layer=layer, blueprint=blueprint)
                    self.decisions.clear()
                self.handle.step(loss=loss, batch=(inputs, labels))
                if self.draws:
                    self.drawn += [random.random(), np.random.random(), float(torch.rand(()))]
            self.done += 1
        return self

    def load(self, layer: str = "0") -> "Loop":
        return self.decide("load_kernel", layer, "bottleneck")

    def decide(self, kind: str, layer: str = "0", blueprint: str | None = None) -> "Loop":
        self.decisions.append((kind, layer, blueprint))
        return self

    def twins(self) -> list[tuple[str, float, int, float]]:
        """Return (layer, gain, steps, probability) of every published result."""
        frames: list[LayerHealth] = self.transport.records("telemetry.layer.health_signals")
        return [
            row
            for frame in frames
            for row in zip(frame.layer_id, frame.twin_gain, frame.twin_steps, frame.twin_probability, strict=False)
            if row[1] is not None
        ]


MODES = [
    {},
    {"accumulate": 2},
    {"scaled": True},
    {"accumulate": 4, "scaled": True},
    {"optimizer_class": torch.optim.SGD},
    {"held_out": False},
]


@pytest.mark.parametrize("mode", [*MODES, {"draws": True}])
def test_the_loop_computes_the_same_bits_with_a_twin(mode: dict[str, Any]) -> None:
    runs = [Loop(budget=budget, **mode).train(6).load().train(20).load("5").train(20) for budget in (0.0, 1.0)]
    off, on = runs
    assert len(on.twins()) == 2
    assert on.losses == off.losses
    assert on.drawn == off.drawn
    for name, value in off.model.state_dict().items():
        assert torch.equal(value, on.model.state_dict()[name]), name
    states = [run.optimizer.state_dict()["state"] for run in runs]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items()), index
    assert [group["lr"] for group in on.optimizer.param_groups] == [group["lr"] for group in off.optimizer.param_groups]
    assert on.handle.stats.errors == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_shadow_of_an_event_without_effect_trains_bit_identically(mode: dict[str, Any]) -> None:
    loop = Loop(**mode).train(6).load().train(20)
    assert loop.layer.seeds[0].state is SeedState.ACTIVE
    loop.decide("fossilize_kernel")
    loop.train(TWIN_STEPS)  # executed at the end of the first of them
    assert loop.layer.seeds[0].state is SeedState.FOSSILIZED
    shadow = loop.twin._shadow
    assert shadow is not None
    assert shadow.steps == TWIN_STEPS - 1
    own = dict(loop.model.named_parameters()) | dict(loop.model.named_buffers())
    copied = dict(shadow.model.named_parameters()) | dict(shadow.model.named_buffers())
    assert own.keys() == copied.keys()
    for name, value in own.items():
        assert value is not copied[name]
        assert torch.equal(value, copied[name]), name
    loop.train(3)
    assert loop.twins()[-1] == ("0", 0.0, TWIN_STEPS, loop.twins()[-1][3])


def test_a_kernel_that_still_ramps_and_a_slowed_layer_are_copied_as_they_are() -> None:
    loop = Loop(options={"ramp_steps": 30}).train(4)
    loop.decide("optimize_parameters")
    loop.train(1).load()
    loop.train(4)
    loop.load("5").train(1)
    shadow = loop.twin._shadow
    assert shadow is not None
    layers = [attached_layer(shadow.model, layer_id) for layer_id in ("0", "5")]
    loop.train(5)
    assert [layer.seeds[0].ticks for layer in layers] == [loop.layer.seeds[0].ticks, 0]
    growing = shadow._growing
    assert growing.learning_rate(layers[0].base.weight) == pytest.approx(  # type: ignore[attr-defined]
        growing.optimizers[0].param_groups[0]["lr"] / 2
    )


def test_an_adaptation_amid_an_accumulation_is_measured_with_the_batches_before_it() -> None:
    loop = Loop(accumulate=2).train(4)
    loop.transport.decide("load_kernel", layer="0", blueprint="bottleneck")
    loop.train(1)  # executed after the first of two batches
    shadow = loop.twin._shadow
    assert shadow is not None
    assert (shadow.steps, len(shadow.losses)) == (1, 1)
    loop.train(TWIN_STEPS + 2)
    assert [twin[2] for twin in loop.twins()] == [TWIN_STEPS]


@pytest.mark.parametrize("name", ["digits", "mnist1d"])
def test_the_gain_is_that_of_a_second_complete_run(name: str) -> None:
    task, loaded, measured = load_task(name), 40, 300

    def train(*, load: bool) -> tuple[float, list[Any], Handle]:
        workload = Workload.of(task, seed=3, steps=1000)
        transport = MemoryTransport()
        handle = workload.attach(
            transport=transport, twin_budget=1.0, settings=settings(sample_interval=10, ramp_steps=50)
        )
        training = steps(workload, handle)
        for step in range(1, loaded + measured + 1):
            if load and step == loaded:
                transport.decide("load_kernel", layer="2", blueprint="parallel_expansion")
            next(training)
        loss, _ = evaluate(workload.model, task.held_out())
        for _ in range(15):
            next(training)
        return loss, transport.records("telemetry.layer.health_signals"), handle

    with_kernel, frames, handle = train(load=True)
    without, _, _ = train(load=False)
    (found,) = [
        (layer, gain, steps, probability)
        for frame in frames
        for layer, gain, steps, probability in zip(
            frame.layer_id, frame.twin_gain, frame.twin_steps, frame.twin_probability, strict=False
        )
        if gain is not None
    ]
    assert found == ("2", pytest.approx(math.log(without / with_kernel), abs=1e-9), measured, 1.0)
    assert abs(found[1]) > 1e-3
    assert handle.stats.twin_seconds > 0


def test_the_users_hooks_do_not_see_the_copy() -> None:
    calls: list[str] = []

    def hook(model: nn.Module) -> None:
        model[1].register_forward_hook(lambda *_: calls.append("forward"))
        model[5].register_forward_pre_hook(lambda *_: calls.append("before"))
        model[5].register_full_backward_hook(lambda *_: calls.append("backward"))
        model[5].weight.register_hook(lambda _: calls.append("gradient"))

    loops = [Loop(budget=budget, change=hook, held_out=False).train(4).load() for budget in (0.0, 1.0)]
    counted = []
    for loop in loops:
        calls.clear()
        loop.train(6)
        counted.append(len(calls))
    assert loops[1].twin.active
    assert counted[0] == counted[1]


def test_a_hook_of_torch_is_part_of_the_computation() -> None:
    def normalise(model: nn.Module) -> None:
        nn.utils.spectral_norm(model[5])

    loop = Loop(change=normalise, options={"parameter_budget": 10_000}).train(6).load().train(6)
    loop.decide("fossilize_kernel")
    loop.train(TWIN_STEPS + 3)
    assert [twin[1] for twin in loop.twins()][-1:] in ([0.0], [])


def test_another_adaptation_ends_a_measurement(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tamiyo.host")
    loop = Loop().train(4).load().train(7).load("5").train(2)
    assert loop.twins() == []
    assert "another adaptation after 7 of 12 steps" in caplog.text
    loop = Loop().train(4).load().train(8).load("5").train(3)
    ((layer, _, steps, _),) = loop.twins()
    assert (layer, steps) == ("0", 8)
    assert loop.twin.active


def failing(*_: Any, **__: Any) -> None:
    raise MemoryError("no memory")


def broken_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamiyo.host._probes.shadow.Shadow.accumulate", failing)


def broken_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamiyo.host._probes.shadow.Shadow.__init__", failing)


def broken_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_twin, "_hyper_parameters", failing)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_twin, "COST_LIMIT", 0.0)
    monkeypatch.setattr(shadow_twin, "_SETTLED", 2)


def not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tamiyo.host._probes.counterfactual.HeldOutBatch.of", lambda self, _: self)
    monkeypatch.setattr("tamiyo.host._probes.counterfactual.HeldOutBatch.loss", lambda _: None)


@pytest.mark.parametrize("fail", [broken_forward, broken_copy, broken_rates, slow, not_finite])
def test_a_twin_that_fails_is_dropped_with_one_line(
    fail: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Loop(budget=0.0).train(4).load().train(TWIN_STEPS + 6).losses
    fail(monkeypatch)
    loop = Loop().train(4).load().train(TWIN_STEPS + 6)
    assert loop.losses == expected
    assert loop.twins() == []
    assert not loop.twin.active
    assert caplog.text.count("shadow twin of decision") + caplog.text.count("shadow twin dropped") == 1
    assert loop.handle.stats.errors == 0


def test_a_model_that_cannot_be_copied_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(change=lambda model: setattr(model, "lock", threading.Lock())).train(4).load().train(6)
    assert not loop.twin.active
    assert "TypeError" in caplog.text
    assert loop.handle.stats.executed == 1


def test_a_loop_that_clips_its_gradients_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(clip=True).train(4).load().train(3)
    assert not loop.twin.active
    assert "is loss_fn the loss of the loop?" in caplog.text


def test_a_loop_that_passes_no_batch_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop().train(4).load().train(3)
    assert loop.twin.active
    loop.handle.step(loss=1.0)
    assert not loop.twin.active
    assert "a step has no batch" in caplog.text
    loop.transport.decide("unload_kernel", layer="0")
    loop.handle.step(loss=1.0)
    assert loop.handle.stats.executed == 2
    assert not loop.twin.active


def test_what_is_not_executed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop().train(4)
    monkeypatch.setattr(KasminaLayer, "load_kernel", failing)
    loop.load().train(1)
    assert loop.handle.stats.failed == 1
    assert not loop.twin.active


def test_a_resumed_or_closed_run_discards_its_measurement() -> None:
    loop = Loop().train(4).load().train(3)
    saved = copy.deepcopy(loop.handle.state_dict())
    loop.handle.load_state_dict(saved)
    assert not loop.twin.active
    loop.load("5").train(2)
    assert loop.twin.active
    loop.handle.close()
    assert not loop.twin.active


def test_the_time_of_a_twin_is_neither_training_nor_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(SystemClock):
        now = 0.0

        def seconds(self) -> float:  # type: ignore[override]
            return self.now

    stopped = Stopped()
    plain = shadow_twin.Shadow.accumulate

    def slowly(self: Any, each: Any) -> Tensor:
        stopped.now += 100.0
        return plain(self, each)

    monkeypatch.setattr("tamiyo.host._probes.shadow.Shadow.accumulate", slowly)
    monkeypatch.setattr(shadow_twin, "COST_LIMIT", math.inf)
    with clock.using(stopped):
        stats = Loop(options={"overhead_budget": 0.06}).train(4).load().train(6).handle.stats
    assert stats.twin_seconds == 500.0
    assert (stats.training_seconds, stats.sdk_seconds) == (0.0, 0.0)


def probabilities(budget: float, planned_steps: int | None, at: list[int]) -> Iterator[float]:
    """Return the probabilities of adaptations at some steps, none of which is measured."""
    twin = Loop(budget=budget, planned_steps=planned_steps).twin
    for step in at:
        twin._step = step
        yield twin._probability(step)
        twin._adaptations += 1


def test_the_probability_follows_from_the_budget() -> None:
    # 10 % of 1200 steps are 120, ten measurements of 12 steps.
    assert list(probabilities(0.1, 1200, [100])) == [1.0]
    assert list(probabilities(0.005, 1200, [100])) == [0.5]
    # After 3 in 300 steps, 9 more are expected in the remaining 900 beside this one: 120 steps would be needed.
    assert list(probabilities(0.05, 1200, [100, 200, 250, 300]))[-1] == pytest.approx(60 / 120)
    # Without a planned end, only the steps so far count.
    assert list(probabilities(0.05, None, [60, 240])) == [0.25, 1.0]
    assert list(probabilities(1.0, 1200, [1188, 1189])) == [1.0, 0.0]  # the last could not end


def test_what_was_spent_is_not_spent_again() -> None:
    twin = Loop(budget=0.01, planned_steps=1200).twin
    twin._step = 100
    assert twin._probability(100) == 1.0
    twin._trained = 6
    assert twin._probability(100) == 0.5
    twin._trained = 12
    assert twin._probability(100) == 0.0


def test_the_choice_is_a_hash_of_the_decision_and_moves_no_random_stream() -> None:
    transport = MemoryTransport()
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    attach(model, optimizer, example_input=batch(0)[0], transport=transport, run_id="always the same")
    decisions = [transport.decide("unload_kernel", layer="0") for _ in range(400)]
    before = torch.get_rng_state()
    drawn = [shadow_twin._uniform(each) for each in decisions]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn == [shadow_twin._uniform(each) for each in decisions]
    assert all(0 <= each < 1 for each in drawn)
    assert np.mean(drawn) == pytest.approx(0.5, abs=3 * 0.289 / 20)


def test_without_a_held_out_batch_the_losses_of_the_last_steps_are_compared() -> None:
    loop = Loop(held_out=False).train(4).load().train(TWIN_STEPS - 1)
    shadow = loop.twin._shadow
    assert shadow is not None
    loop.train(1)
    loop.train(3)
    ((_, gain, steps, _),) = loop.twins()
    pairs = list(shadow.losses)
    assert [float(loss) for loss, _ in pairs] == pytest.approx(loop.losses[5 : 5 + steps])
    without, together = (sum(float(pair[side]) for pair in pairs) for side in (1, 0))
    assert gain == pytest.approx(math.log(without / together))


def test_a_result_is_published_once_at_its_layer() -> None:
    loop = Loop().train(4)
    loop.twin.results["5"] = TwinResult(0.25, 300, 0.5)
    loop.train(4)
    assert loop.twins() == [("5", 0.25, 300, 0.5)]
    assert loop.twin.results == {}


def test_a_twin_that_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())

    def make(**options: Any) -> Handle:
        return attach(model, optimizer, example_input=batch(0)[0], transport=MemoryTransport(), **options)

    with pytest.raises(ConfigurationError, match="loss_fn"):
        make(twin_budget=0.1)
    with pytest.raises(ConfigurationError, match="twin_budget"):
        make(twin_budget=-0.1, loss_fn=F.cross_entropy)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match="2 ranks"):
        make(settings=settings(twin_budget=0.1), loss_fn=F.cross_entropy)
    assert make(loss_fn=F.cross_entropy, distributed=False).stats.twin_seconds == 0.0
