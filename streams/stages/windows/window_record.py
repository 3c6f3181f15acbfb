"""The record of a window that has closed."""

from tamiyo.schemas.analysis import HealthWindow
from tamiyo.schemas.identity import identity, window_id
from tamiyo.streams.settings import WindowSettings
from tamiyo.streams.stages.windows.open_windows import OpenWindow
from tamiyo.streams.stages.windows.window_stats import layer_statistics, model_statistics


def window_record(run_id: str, window: OpenWindow, settings: WindowSettings, *, final: bool) -> HealthWindow:
    """Return the content of a window, which depends on the signals inside but not on their order of arrival.

    Args:
        run_id: The training run.
        window: The closed window, with at least one signal.
        settings: The clock and width it was cut by.
        final: Whether it is the run's last window.
    """
    inside = sorted(window.contributions.values(), key=lambda contribution: contribution.order)
    layers, columns = layer_statistics(inside, window.start)
    return HealthWindow(
        run_id=run_id,
        window_id=window_id(run_id, settings.clock, settings.width, window.start),
        clock=settings.clock,
        start=window.start,
        end=window.start + settings.width,
        first_step=min(contribution.step for contribution in inside),
        last_step=max(contribution.step for contribution in inside),
        time_ms=max(contribution.time_ms for contribution in inside),
        final=final,
        layer_id=layers,
        columns=columns,
        model_metrics=model_statistics(inside, window.start),
        signals=window.rows,
        frames=len(inside),
        shed=sum(contribution.shed for contribution in inside),
        signals_digest=identity("signals", *sorted(window.contributions)),
    )
