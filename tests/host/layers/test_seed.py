"""A seed's states and its ramp."""

import pytest

from tamiyo.host._layers.seed import Seed, SeedState
from tamiyo.schemas.errors import KernelError
from tests.support.layers import kernel, spec_of

KERNEL = kernel(spec_of("linear"))


def loaded(ramp_steps: int = 4, step: int = 10) -> Seed:
    seed = Seed(0, ramp_steps)
    seed.load(KERNEL, kernel_id="abcdef01", blueprint="bottleneck", step=step)
    return seed


def active(ramp_steps: int = 4) -> Seed:
    seed = loaded(ramp_steps)
    seed.advance(10 + ramp_steps)
    assert seed.state is SeedState.ACTIVE
    return seed


def test_the_ramp_goes_up_and_down_in_equal_steps() -> None:
    seed = loaded(ramp_steps=4, step=10)
    assert (seed.state, seed.alpha, seed.live) == (SeedState.LOADING, 0.25, True)
    alphas = []
    for step in range(11, 15):
        assert not seed.advance(step)
        alphas.append(seed.alpha)
    assert alphas == [0.5, 0.75, 1.0, 1.0]
    assert seed.state is SeedState.ACTIVE
    seed.unload()
    assert (seed.state, seed.alpha, seed.unloading) == (SeedState.ACTIVE, 1.0, True)
    assert [(seed.advance(step), seed.alpha) for step in range(15, 19)] == [
        (False, 0.75),
        (False, 0.5),
        (False, 0.25),
        (True, 0.0),
    ]
    assert not seed.live
    assert seed.clear() is KERNEL
    assert (seed.state, seed.alpha, seed.loaded, seed.kernel_id) == (SeedState.DORMANT, 0.0, False, "")


def test_unloading_while_loading_ramps_down_from_the_current_position() -> None:
    seed = loaded(ramp_steps=10)
    seed.advance(12)
    assert seed.alpha == 0.3
    seed.unload()
    assert seed.alpha == 0.3
    assert not seed.advance(14)
    assert seed.alpha == 0.1
    seed.unload()  # a repeat changes nothing
    assert seed.alpha == 0.1
    assert seed.advance(15)


def test_a_repeated_or_earlier_step_changes_nothing() -> None:
    seed = loaded(ramp_steps=10)
    alphas = []
    for step in (12, 12, 3, 12):
        seed.advance(step)
        alphas.append(seed.alpha)
    assert alphas == [0.3] * 4


def test_a_skipped_step_counts() -> None:
    seed = loaded(ramp_steps=10)
    seed.advance(1000)
    assert (seed.alpha, seed.state) == (1.0, SeedState.ACTIVE)


@pytest.mark.parametrize("ramp_steps", [0, 1])
def test_without_a_ramp_a_load_is_active_at_once(ramp_steps: int) -> None:
    seed = loaded(ramp_steps)
    assert (seed.alpha, seed.state) == (1.0, SeedState.ACTIVE)
    seed.unload()
    assert seed.advance(11)
    assert seed.alpha == 0.0


def test_fossilized_is_permanent() -> None:
    seed = active()
    seed.fossilize()
    assert (seed.state, seed.alpha, seed.live) == (SeedState.FOSSILIZED, 1.0, True)
    with pytest.raises(KernelError, match=r"FOSSILIZED.*permanent"):
        seed.unload()
    with pytest.raises(KernelError, match="is FOSSILIZED: only an ACTIVE"):
        seed.fossilize()
    assert not seed.advance(500)


def test_a_fossilized_seed_is_fossilized_after_quarantine() -> None:
    seed = active()
    seed.fossilize()
    seed.quarantine()
    assert (seed.state, seed.live) == (SeedState.ERROR_RECOVERY, False)
    with pytest.raises(KernelError, match="permanent"):
        seed.unload()
    seed.release()
    assert (seed.state, seed.alpha) == (SeedState.LOADING, 0.25)
    seed.advance(17)
    assert (seed.state, seed.alpha) == (SeedState.FOSSILIZED, 1.0)


def test_unloading_a_bypassed_kernel_drops_it_at_once() -> None:
    quarantined, broken = active(ramp_steps=50), active(ramp_steps=50)
    quarantined.quarantine()
    broken.awaiting_repair = True
    for seed in (quarantined, broken):
        seed.unload()
        assert not seed.live
        assert seed.advance(seed.step)


def test_transitions_that_a_state_forbids() -> None:
    with pytest.raises(KernelError, match="DORMANT: there is no kernel to unload"):
        Seed(0).unload()
    with pytest.raises(KernelError, match="DORMANT"):
        Seed(0).fossilize()
    with pytest.raises(KernelError, match="DORMANT"):
        Seed(0).clear()
    with pytest.raises(KernelError, match="is LOADING: only an ACTIVE"):
        loaded().fossilize()
    with pytest.raises(KernelError, match="with kernel abcdef01"):
        active().load(KERNEL, kernel_id="00000000", blueprint="bottleneck", step=1)
    leaving = active()
    leaving.unload()
    with pytest.raises(KernelError, match="being unloaded"):
        leaving.fossilize()
