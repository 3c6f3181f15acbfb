"""How long a worker that stops is given before it is killed: always longer than it gives itself.

A worker that is killed while it stops has published what it does not commit, which the next one reads again. So whoever
stops workers (the supervisor, the demo, a container engine) waits until the worker's own timeout has passed, and the
process has had time to exit.
"""

from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.settings import variable
from tamiyo.streams.settings import SupervisorSettings, WorkerSettings

EXIT_S = 2.0
"""Seconds that a worker may take to exit after its graceful stop is done, or has timed out."""


def require_stop_times(supervisor: SupervisorSettings, worker: WorkerSettings) -> None:
    """Check that the supervisor, where there is one, waits longer for a stopping worker than the worker itself does.

    Raises:
        ConfigurationError: It does not; the message has both settings with their values.
    """
    needed = worker.shutdown_timeout_s + EXIT_S
    if supervisor.enabled and supervisor.stop_timeout_s < needed:
        raise ConfigurationError(
            f"{variable(SupervisorSettings, 'stop_timeout_s')}={supervisor.stop_timeout_s:g} contradicts "
            f"{variable(WorkerSettings, 'shutdown_timeout_s')}={worker.shutdown_timeout_s:g}: the first must be at "
            f"least {EXIT_S:g} s above the second, {needed:g} here, or workers are killed while they stop"
        )


def stop_wait_s() -> float:
    """Return the seconds to wait for a worker of this environment that stops, before it is killed."""
    return max(SupervisorSettings().stop_timeout_s, WorkerSettings().shutdown_timeout_s + EXIT_S)
