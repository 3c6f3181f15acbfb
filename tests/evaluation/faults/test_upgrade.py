"""The order of a rolling upgrade."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tamiyo.evaluation.common.released_records import encode_released
from tamiyo.evaluation.faults.course import LAYOUT
from tamiyo.evaluation.faults.ledger import Ledger
from tamiyo.evaluation.faults.telemetry import Telemetry
from tamiyo.evaluation.faults.upgrade import OLD_STAGES, Upgrade
from tamiyo.schemas.codec import encode
from tamiyo.schemas.kafka import KafkaSettings, TopicNames


class Fleet:
    """Records what is started and stopped, and which release runs each stage at every moment."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[str, Sequence[str]]] = {}
        self.moments: list[dict[str, set[str]]] = []

    def add(self, name: str, arguments: Sequence[str], port: int, environment: Mapping[str, str]) -> None:
        assert environment == {"PYTHONPATH": "/release"}
        assert arguments[:3] == ["worker", "--http-port", str(port)]
        self._note(name, ("old", [arguments[arguments.index("--stage") + 1]]))

    def add_worker(self, name: str, stages: Sequence[str]) -> None:
        assert name not in self.running, "a worker that runs would keep its stages"
        self._note(name, ("new", list(stages)))

    def stop(self, name: str) -> None:
        self._note(name, None)

    def wait_ready(self, names: Sequence[str]) -> None:
        assert set(names) <= self.running.keys()

    def _note(self, name: str, what: tuple[str, Sequence[str]] | None) -> None:
        self.running.pop(name, None)
        if what is not None:
            self.running[name] = what
        stages = {stage for _, has in self.running.values() for stage in has}
        self.moments.append(
            {stage: {release for release, has in self.running.values() if stage in has} for stage in stages}
        )


def test_stages_are_upgraded_readers_first_and_hosts_last(kafka: KafkaSettings, names: TopicNames) -> None:
    fleet: Any = Fleet()
    telemetry = Telemetry(kafka, names, Ledger(), seed=1, partitions=4)
    layout = {f"{kind}-{number}": stages for kind, stages in LAYOUT.items() for number in (1, 2)}
    upgrade = Upgrade(fleet, telemetry, Path("/release"), layout)

    upgrade.start()
    for name, stages in upgrade.first.items():
        fleet.add_worker(name, stages)

    assert telemetry.encoding is encode_released
    assert {stage for stage, has in fleet.moments[-1].items() if has == {"old"}} == set(OLD_STAGES)
    assert upgrade.finish().startswith("windows, then intake of")
    assert telemetry.encoding is encode
    assert fleet.running == {name: ("new", [*upgrade.first[name], *_added(layout[name])]) for name in layout}
    for moment in fleet.moments:
        assert all(len(releases) == 1 for releases in moment.values()), "one stage ran in two releases"
        assert moment.get("windows") != {"old"} or moment.get("intake") != {"new"}, "intake is read by windows"


def _added(stages: Sequence[str]) -> list[str]:
    return [stage for stage in OLD_STAGES if stage in stages]
