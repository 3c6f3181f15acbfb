"""A rolling upgrade from the last release, in the order that the guide to operations gives.

At first hosts and processes of the last release write telemetry, signals and windows; what reads windows is of today.
Then the stages are upgraded, readers before writers, all workers of one at once, and the hosts last.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tamiyo.evaluation.common.fleet import Fleet
from tamiyo.evaluation.common.last_release import last_version
from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.evaluation.faults.telemetry import Telemetry
from tamiyo.schemas.codec import encode
from tamiyo.streams.admin.brokers import free_ports

OLD_STAGES = ("windows", "intake")  # readers first


class Upgrade:
    """Processes of the last release in a fleet, and their replacement."""

    def __init__(self, fleet: Fleet, telemetry: Telemetry, release: Path, layout: Mapping[str, Sequence[str]]) -> None:
        """Prepare it.

        Args:
            fleet: Of the installation.
            telemetry: Its training runs.
            release: The folder that the last release's package is in.
            layout: Today's workers with their stages.
        """
        self._fleet = fleet
        self._telemetry = telemetry
        self._release = release
        self._layout = layout

    @property
    def first(self) -> dict[str, list[str]]:
        """Today's workers, with the stages that they have from the start."""
        return {name: [each for each in stages if each not in OLD_STAGES] for name, stages in self._layout.items()}

    def start(self) -> None:
        """Start a process of the last release for each of its stages."""
        self._telemetry.encoding = encode_released
        for stage in OLD_STAGES:
            (port,) = free_ports(1)
            arguments = ["worker", "--http-port", str(port), "--stage", stage]
            self._fleet.add(_old(stage), arguments, port, {"PYTHONPATH": str(self._release)})

    def finish(self) -> str:
        """Upgrade one stage after the other, and return what was upgraded when all workers are ready."""
        have = self.first
        for stage in OLD_STAGES:
            self._fleet.stop(_old(stage))
            for name, stages in self._layout.items():
                if stage in stages:
                    have[name].append(stage)
                    self._fleet.stop(name)
                    self._fleet.add_worker(name, have[name])
            self._fleet.wait_ready(list(self._layout))
        self._telemetry.encoding = encode
        return f"{', then '.join(OLD_STAGES)} of {last_version()}"


def _old(stage: str) -> str:
    return f"old-{stage}"
