"""A kernel that fails: bypassed in the same step, and the way back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.recovery import ErrorRecovery, RecoveryEvent
from tamiyo.host._layers.seed import SeedState
from tamiyo.schemas.errors import KernelError
from tests.support.layers import FaultyKernel, kernel, layer, train

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))


def faulty(**options: object) -> tuple[KasminaLayer, FaultyKernel, list[RecoveryEvent]]:
    """A layer with a kernel that adds 1 to everything, when it works."""
    events: list[RecoveryEvent] = []
    wrapped = layer("linear", ramp_steps=0, recovery=ErrorRecovery(on_event=events.append, **options))  # type: ignore[arg-type]
    built = FaultyKernel(7)
    wrapped.load_kernel(built, kernel_id="c0ffee00", blueprint="bottleneck", step=0)
    built.teach()
    return wrapped, built, events


def fail(wrapped: KasminaLayer, built: FaultyKernel, step: int, kind: str = "raise") -> None:
    """One failing step: output right, then the step ends."""
    built.faults, built.kind = 2, kind  # the attempt and the retry
    assert torch.equal(wrapped(X), wrapped.base(X))
    built.faults = 0
    wrapped.advance(step)


def strategies(events: list[RecoveryEvent]) -> list[tuple[str, bool]]:
    return [(event.strategy, event.success) for event in events]


@pytest.mark.parametrize("kind", ["raise", "nan"])
def test_a_passing_fault_is_retried_within_the_step(kind: str) -> None:
    wrapped, built, events = faulty()
    built.faults, built.kind = 1, kind
    assert torch.allclose(wrapped(X), wrapped.base(X) + 1.0)
    assert strategies(events) == [("retry", True)]
    event = events[0]
    assert (event.layer_id, event.seed_id, event.kernel_id) == ("layer", 0, "c0ffee00")
    assert event.error_type == {"raise": "RuntimeError", "nan": "FloatingPointError"}[kind]
    assert event.message == {"raise": "out of luck", "nan": "kernel c0ffee00 returned values that are not finite"}[kind]
    assert event.recovery_time_ms > 0
    performance = wrapped.get_layer_stats()["performance"]
    assert (performance["errors"], performance["kernel_executions"], performance["error_rate"]) == (1, 1, 0.5)


@pytest.mark.parametrize("kind", ["raise", "nan"])
def test_recovery_escalates_to_quarantine_probation_and_unloading(kind: str) -> None:
    wrapped, built, events = faulty(quarantine_steps=10)
    seed = wrapped.seeds[0]
    fail(wrapped, built, 1, kind)
    assert strategies(events) == [("retry", False), ("fall_back", True)]
    assert torch.allclose(wrapped(X), wrapped.base(X) + 1.0)  # the next step it is in again

    events.clear()
    fail(wrapped, built, 2, kind)
    # no snapshot yet and no cache: the reload fails, the reset succeeds
    assert strategies(events) == [("fall_back", True), ("reload", False), ("reset", True)]
    assert seed.state is SeedState.ACTIVE
    assert torch.equal(wrapped(X), wrapped.base(X))  # zero again
    built.teach()

    events.clear()
    fail(wrapped, built, 3, kind)
    assert strategies(events) == [("fall_back", True)]
    assert seed.state is SeedState.ERROR_RECOVERY
    assert wrapped.get_layer_stats()["state_stats"]["error_recovery_seeds"] == 1
    calls = built.calls
    assert torch.equal(wrapped(X), wrapped.base(X))
    assert built.calls == calls  # bypassed, not tried

    events.clear()
    for step in range(4, 12):
        wrapped.advance(step)
    assert not events
    wrapped.advance(12)  # quarantined at step 2, the last one advanced to before the error
    assert strategies(events) == [("reset", True)]
    assert (seed.state, seed.probation) == (SeedState.ACTIVE, True)
    built.teach()
    assert torch.allclose(wrapped(X), wrapped.base(X) + 1.0)

    events.clear()
    built.faults = 1
    assert torch.equal(wrapped(X), wrapped.base(X))
    assert strategies(events) == [("unload", True)]
    assert [d.kernel is built for d in wrapped.advance(13)] == [True]
    assert seed.state is SeedState.DORMANT
    assert seed.total_errors == 0


def test_a_fossilized_kernel_returns_to_quarantine() -> None:
    wrapped, built, events = faulty(max_errors=1, quarantine_steps=5)
    wrapped.fossilize()
    fail(wrapped, built, 1)
    assert wrapped.seeds[0].state is SeedState.ERROR_RECOVERY
    for _ in range(2):
        wrapped.advance(wrapped.seeds[0].quarantined_step + 5)
        assert wrapped.seeds[0].state is SeedState.FOSSILIZED
        events.clear()
        built.faults = 1
        wrapped(X)
        assert strategies(events) == [("fall_back", True)]
        assert wrapped.seeds[0].state is SeedState.ERROR_RECOVERY
    assert wrapped.seeds[0].loaded


def test_a_poisoned_kernel_is_reloaded_as_it_was_when_healthy() -> None:
    replaced: list[nn.Parameter] = []
    wrapped, built, events = faulty(snapshot_every=5, on_replaced=replaced.extend)
    wrapped(X)
    wrapped.advance(5)  # remembers the taught kernel
    with torch.no_grad():
        built.last.bias.fill_(torch.inf)  # type: ignore[union-attr, operator]
    built.last.bias.grad = torch.full((7,), torch.nan)  # type: ignore[union-attr]
    assert torch.equal(wrapped(X), wrapped.base(X))
    assert torch.equal(wrapped(X), wrapped.base(X))  # bypassed until the step is over: no second error
    assert strategies(events) == [("fall_back", True)]
    wrapped.advance(6)
    assert strategies(events)[1:] == [("reload", True)]
    assert torch.allclose(wrapped(X), wrapped.base(X) + 1.0)
    assert {id(p) for p in replaced} == {id(p) for p in built.parameters()}
    assert built.last.bias.grad is None


def test_without_a_snapshot_the_cache_is_the_source() -> None:
    requested: list[str] = []
    pristine = {"last.weight": torch.zeros(7, 1), "last.bias": torch.full((7,), 0.5)}

    def source(kernel_id: str) -> dict[str, torch.Tensor]:
        requested.append(kernel_id)
        return pristine

    wrapped, built, events = faulty(source=source)
    with torch.no_grad():
        built.last.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
    wrapped(X)
    wrapped.advance(1)
    assert requested == ["c0ffee00"]
    assert strategies(events) == [("fall_back", True), ("reload", True)]
    assert torch.allclose(wrapped(X), wrapped.base(X) + 0.5)


def test_a_source_that_fails_or_does_not_fit_leads_to_a_reset() -> None:
    def absent(kernel_id: str) -> dict[str, torch.Tensor]:
        raise KernelError(f"kernel {kernel_id} is not in the cache")

    for source, message in ((absent, "not in the cache"), (lambda _: {"last.bias": torch.zeros(7)}, "other shapes")):
        wrapped, built, events = faulty(source=source)
        with torch.no_grad():
            built.last.bias.fill_(torch.nan)  # type: ignore[union-attr, operator]
        wrapped(X)
        wrapped.advance(1)
        assert strategies(events) == [("fall_back", True), ("reload", False), ("reset", True)]
        assert message in events[1].message
        assert torch.equal(wrapped(X), wrapped.base(X))


def test_many_clean_executions_clear_earlier_errors() -> None:
    wrapped, built, events = faulty(forgive_after=3)
    for step in range(1, 7):
        fail(wrapped, built, step)
        for _ in range(3):
            wrapped(X)
    assert wrapped.seeds[0].state is SeedState.ACTIVE
    assert strategies(events) == [("retry", False), ("fall_back", True)] * 6
    assert wrapped.seeds[0].total_errors == 6


def test_a_diverged_network_is_no_error_of_a_kernel() -> None:
    wrapped, _, events = faulty()
    built = kernel(wrapped.spec, "parallel_expansion")  # reads the input, so what is sick there is sick here
    wrapped.load_kernel(built, kernel_id="0000000a", blueprint="parallel_expansion", step=0)
    train(built)
    sick = X.clone()
    sick[0, 0] = torch.nan
    assert bool(wrapped(sick)[0].isnan().all())
    assert not events
    assert [seed.state for seed in wrapped.seeds[:2]] == [SeedState.ACTIVE] * 2
    assert wrapped.performance.errors == 0


@pytest.mark.parametrize("diverged", ["input", "output"])
def test_a_kernel_that_fails_in_a_diverged_network_is_not_an_error(diverged: str) -> None:
    wrapped, _, events = faulty()
    built = kernel(wrapped.spec, "parallel_expansion" if diverged == "input" else "bottleneck")
    wrapped.load_kernel(built, kernel_id="0000000a", blueprint="any", step=0)
    train(built)
    inputs = X.clone()
    if diverged == "input":
        inputs[0, 0] = torch.nan
        wrapped.base = torch.nn.Linear(X.shape[1], 7)
        wrapped.base.forward = lambda given: torch.zeros(len(given), 7)  # type: ignore[method-assign]
    else:
        with torch.no_grad():
            next(wrapped.base.parameters()).fill_(torch.nan)
    wrapped(inputs)
    assert wrapped.performance.errors == 0
    assert not events


def test_healthy_parameters_are_reloaded_even_if_the_newest_snapshot_is_of_bad_ones() -> None:
    wrapped, built, events = faulty(snapshot_every=2)
    wrapped.advance(2)
    bias = built.last.bias
    assert isinstance(bias, Tensor)
    healthy = bias.detach().clone()
    bias.data.fill_(torch.nan)
    wrapped.advance(4)  # before any pass has shown that they are bad
    assert len(wrapped.seeds[0].snapshots) == 2
    for step in range(5, 9):
        wrapped(X)
        wrapped.advance(step)
    assert "reload" in [event.strategy for event in events if event.success]
    assert torch.equal(bias, healthy)


def test_a_reset_kernel_has_no_snapshot() -> None:
    wrapped, built, events = faulty(max_errors=1, quarantine_steps=5, snapshot_every=2)
    wrapped.advance(2)
    assert wrapped.seeds[0].snapshots
    fail(wrapped, built, 3)
    wrapped.advance(7)
    assert events[-1].strategy == "reset"
    assert wrapped.seeds[0].snapshots == ()


def test_a_delta_of_another_shape_is_bypassed() -> None:
    wrapped, built, events = faulty()
    built.last = nn.Linear(1, 3)
    assert torch.equal(wrapped(X), wrapped.base(X))
    assert {event.error_type for event in events} == {"KernelIncompatible"}


def test_one_bad_kernel_does_not_touch_its_neighbour() -> None:
    wrapped, built, _ = faulty()
    good = kernel(wrapped.spec)
    wrapped.load_kernel(good, kernel_id="0000000a", blueprint="bottleneck", step=0)
    train(good)
    built.faults = 2
    y = wrapped.base(X)
    assert torch.equal(wrapped(X), y + good(X, y))


@pytest.mark.parametrize("kind", ["raise", "nan"])
def test_training_continues_through_failures(kind: str) -> None:
    """A layer that is called twice in a step, its kernel failing in the second call: backward still works."""
    torch.manual_seed(0)
    wrapped = KasminaLayer(nn.Linear(5, 5), ramp_steps=0)
    wrapped(X)
    built = FaultyKernel(5)
    wrapped.load_kernel(built, kernel_id="c0ffee00", blueprint="bottleneck", step=0)
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.1)
    for step in range(1, 12):
        optimizer.zero_grad()
        first = wrapped(X)
        built.faults, built.kind = 2, kind
        loss = wrapped(torch.tanh(first)).square().mean()
        built.faults = 0
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in wrapped.base.parameters())
        optimizer.step()
        wrapped.advance(step)
    assert wrapped.seeds[0].state is SeedState.ERROR_RECOVERY


def test_copies_leave_the_callbacks_behind() -> None:
    recovery = ErrorRecovery(max_errors=7, on_event=print, source=lambda _: {})
    twin = copy.deepcopy(recovery)
    assert (twin.max_errors, twin.on_event, twin.source) == (7, None, None)
    assert recovery.on_event is print
