"""What a host measures now and then reaches the rewards through intake and windows."""

from tamiyo.schemas.topics import LAYER_HEALTH, WINDOWS
from tamiyo.streams.settings import IntakeSettings, WindowSettings
from tamiyo.streams.stages.intake.stage import IntakeStage
from tamiyo.streams.stages.rewards.window_summary import WindowSummary
from tamiyo.streams.stages.windows.stage import WindowsStage
from tests.support.chain import Chain
from tests.support.telemetry import layer_health


def test_pairs_and_shadow_twins_reach_the_summary_of_their_window() -> None:
    chain = Chain()
    chain.add(IntakeStage, IntakeSettings())
    chain.add(WindowsStage, WindowSettings())
    measured = layer_health(
        60,
        kernel_latency_ms=[0.5, 0.0],
        base_latency_ms=[1.0, 2.0],
        twin_gain=[None, 0.25],
        twin_steps=[None, 300],
        twin_probability=[None, 0.5],
        companions=[],
    )
    plain = [layer_health(step, companions=[], final=step == 110) for step in (10, 70, 110)]
    for frame in (plain[0], measured, *plain[1:]):
        chain.send(LAYER_HEALTH, frame, "run")
    first, second, _ = [WindowSummary.of(window, 0) for window in chain.log[WINDOWS.name]]
    assert chain.rejected == []
    assert (first.kernel_latency_ms, first.base_latency_ms, first.twins) == (None, None, None)
    assert second.kernel_latency_ms == {"layer.0": 0.5, "layer.1": 0.0}
    assert second.base_latency_ms == {"layer.0": 1.0, "layer.1": 2.0}
    assert second.twins == {"layer.1": (0.25, 300, 0.5)}
