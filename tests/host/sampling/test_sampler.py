"""When a step is sampled, and what its frame and its cost are."""

import pytest

from tamiyo.host._common import clock
from tamiyo.host._layers.wrapping_cost import wrapping_seconds
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.topics import CACHE_HIT_RATES, MODEL_PERFORMANCE
from tests.support.runs import run


class BusyTransport(MemoryTransport):
    """Spends a second of another thread on each record."""

    @property
    def busy_seconds(self) -> float:  # type: ignore[override]
        return float(self.published)


def test_costs_that_no_hook_has_timed_are_charged_once() -> None:
    made = run(transport=BusyTransport(), cache_interval=1000)
    made.train(2)
    charged: list[float] = []
    made.handle._meter.charge = charged.append  # type: ignore[method-assign]
    made.train(4)
    # Three layers in the sampled step, and three frames.
    assert charged == [pytest.approx(3 * wrapping_seconds() + 3)] * 2
    made.handle.close()


def test_memory_is_measured_again_when_the_network_has_changed() -> None:
    made = run()
    made.train(2)
    made.load()
    made.train(4)
    made.transport.decide("unload_kernel", layer="0")
    made.train(8)
    made.handle.close()
    memory = [frame.memory_bytes for frame in made.records(MODEL_PERFORMANCE)]
    kernel = made.records(MODEL_PERFORMANCE)[2].parameters - 83
    assert memory[0] == memory[-1]
    # values, gradients, two moments; and a step counter for each of four tensors
    assert memory[2] - memory[0] == 4 * 4 * kernel + 4 * 4


def test_the_cache_has_a_frame_at_its_interval() -> None:
    made = run(cache_interval=4)
    made.train(13)
    made.handle.close()
    assert [frame.step for frame in made.records(CACHE_HIT_RATES)] == [4, 8, 12]


def test_a_sampled_steps_batch_counts_the_samples() -> None:
    made = run()
    made.train(8)
    made.handle.close()
    frames = made.records(MODEL_PERFORMANCE)[1:-1]
    assert all(frame.throughput * frame.step_time_ms == pytest.approx(16 * 1000) for frame in frames)


class SetClock:
    """Time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    thread_seconds = seconds

    def time_ms(self) -> int:
        return int(self.now * 1000)


def test_the_slowdown_of_a_sampled_step_is_the_time_beyond_that_of_the_others() -> None:
    time = SetClock()
    with clock.using(time):
        made = run(sample_interval=4)
        slowdowns: list[float] = []
        made.handle._sampler._governor.slowed = slowdowns.append  # type: ignore[method-assign]
        for _ in range(16):
            time.now += 1.5 if made.handle.sampling else 1.0
            made.train(1)
        made.handle.close()
    assert slowdowns == [pytest.approx(0.5)] * 3  # no step before the first frame has all its time
