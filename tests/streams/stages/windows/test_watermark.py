"""The watermark of a run: the slowest periodic source, and the end of the run."""

from hypothesis import given
from hypothesis import strategies as st

from tamiyo.schemas.topics import CACHE_HIT_RATES, ERROR_RECOVERY
from tamiyo.streams.stages.windows.watermark import RunWatermark
from tests.support.telemetry import COMPANIONS

KERNEL, LAYER, MODEL = COMPANIONS
SPORADIC = [ERROR_RECOVERY.name, CACHE_HIT_RATES.name]

observations = st.lists(st.tuples(st.sampled_from([*COMPANIONS, *SPORADIC]), st.integers(0, 100)), max_size=30)


def test_it_waits_for_every_companion_and_follows_the_slowest() -> None:
    watermark = RunWatermark()
    watermark.observe(KERNEL, 30, COMPANIONS, False)
    watermark.observe(LAYER, 20, COMPANIONS, False)
    assert watermark.value(0) is None
    watermark.observe(MODEL, 10, COMPANIONS, False)
    assert watermark.value(0) == 10
    watermark.observe(MODEL, 25, COMPANIONS, False)
    assert watermark.value(0) == 20
    assert watermark.value(15) == 5


def test_one_source_named_as_the_only_companion_is_enough() -> None:
    watermark = RunWatermark()
    watermark.observe(KERNEL, 30, [KERNEL], False)
    assert watermark.value(0) == 30


def test_without_companions_the_periodic_sources_seen_so_far_stand_in() -> None:
    watermark = RunWatermark()
    watermark.observe(ERROR_RECOVERY.name, 90, [], False)
    assert watermark.value(0) is None
    watermark.observe(KERNEL, 30, [], False)
    assert watermark.value(0) == 30
    watermark.observe(MODEL, 10, [], False)
    assert watermark.value(0) == 10


@given(observations)
def test_it_is_the_lowest_of_the_sources_highest_clocks(observed: list[tuple[str, int]]) -> None:
    watermark = RunWatermark()
    seen: list[tuple[str, int]] = []
    for source, clock in observed:
        before = watermark.value(0)
        watermark.observe(source, clock, COMPANIONS, False)
        seen.append((source, clock))
        highest = [max((at for name, at in seen if name == companion), default=None) for companion in COMPANIONS]
        known = [clock for clock in highest if clock is not None]
        assert watermark.value(0) == (min(known) if len(known) == len(COMPANIONS) else None)
        assert before is None or (watermark.value(0) or 0) >= before  # it never goes back


def test_a_run_is_finished_with_the_last_frame_of_every_companion() -> None:
    watermark = RunWatermark()
    assert not watermark.finished
    watermark.observe(ERROR_RECOVERY.name, 10, [], True)
    assert not watermark.finished
    for source in COMPANIONS[:2]:
        watermark.observe(source, 10, COMPANIONS, True)
        assert not watermark.finished
    watermark.observe(MODEL, 10, COMPANIONS, False)
    assert not watermark.finished
    watermark.observe(MODEL, 10, COMPANIONS, True)
    assert watermark.finished
    watermark.observe(KERNEL, 20, COMPANIONS, False)
    assert watermark.finished
