"""Nobody kills a worker before its own timeout has passed."""

from pathlib import Path

import pytest

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.streams.process.children import Children
from tamiyo.streams.process.stop_times import EXIT_S, require_stop_times, stop_wait_s
from tamiyo.streams.settings import SupervisorSettings, WorkerSettings


def test_the_defaults_fit() -> None:
    require_stop_times(SupervisorSettings(), WorkerSettings())


@pytest.mark.parametrize(("stop_s", "shutdown_s", "fits"), [(12, 10, True), (11.9, 10, False), (15, 20, False)])
def test_a_supervisor_waits_longer_than_the_worker(stop_s: float, shutdown_s: float, fits: bool) -> None:
    supervisor, worker = SupervisorSettings(stop_timeout_s=stop_s), WorkerSettings(shutdown_timeout_s=shutdown_s)
    require_stop_times(supervisor.model_copy(update={"enabled": False}), worker)
    if fits:
        require_stop_times(supervisor, worker)
        return
    with pytest.raises(ConfigurationError) as refused:
        require_stop_times(supervisor, worker)
    assert f"TAMIYO_SUPERVISOR_STOP_TIMEOUT_S={stop_s:g}" in str(refused.value)
    assert f"TAMIYO_WORKER_SHUTDOWN_TIMEOUT_S={shutdown_s:g}" in str(refused.value)
    assert f"{shutdown_s + EXIT_S:g} here" in str(refused.value)


def test_children_of_a_command_are_given_as_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Children(tmp_path, {}).stop_wait_s == stop_wait_s() == SupervisorSettings().stop_timeout_s
    monkeypatch.setenv("TAMIYO_WORKER_SHUTDOWN_TIMEOUT_S", "60")
    assert Children(tmp_path, {}).stop_wait_s == 60 + EXIT_S
