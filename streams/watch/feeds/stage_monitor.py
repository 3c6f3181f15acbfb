"""Reads the lag and the members of the stages' consumer groups, every few seconds."""

import threading
import time
from typing import Any

from confluent_kafka import KafkaException

from tamiyo.schemas.errors import BrokerError
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.streams.admin.groups import Membership, StageGroup, memberships, stage_groups
from tamiyo.streams.admin.topics import Topics
from tamiyo.streams.watch.history import History

EVERY_S = 3.0
INTEREST_S = 0.5  # between two checks whether to stop
SHARE = 10.0  # of the time that a look takes: a large installation is asked less often


class StageMonitor:
    """Keeps the history's stages current while someone watches."""

    def __init__(self, history: History, kafka: KafkaSettings, names: TopicNames, stopping: threading.Event) -> None:
        """Prepare; nothing is requested yet."""
        self._history = history
        self._kafka = kafka
        self._names = names
        self._stopping = stopping
        self._embedded: bool | None = None

    def run(self) -> None:
        """Read until `stopping` is set."""
        while not self._stopping.is_set():
            if not self._history.stages_wanted.wait(INTEREST_S):
                continue
            began = time.monotonic()
            try:
                self._history.update_stages(self._stages())
            except (BrokerError, KafkaException) as error:
                stages = [{**each, "problem": str(error)} for each in self._history.topics.stages]
                self._history.update_stages(stages)
            self._stopping.wait(max(EVERY_S, SHARE * (time.monotonic() - began)))

    def _stages(self) -> list[dict[str, Any]]:
        if self._embedded is None:
            self._embedded = Topics(self._kafka, self._names).embedded()
        groups = stage_groups(self._kafka, self._names)
        found = {} if self._embedded else memberships(self._kafka, groups)
        return [self._stage(group, found.get(group.stage)) for group in groups]

    def _stage(self, group: StageGroup, found: Membership | BrokerError | None) -> dict[str, Any]:
        lag = {self._names.bare(topic): count for topic, count in group.lag.items()}
        member = found if isinstance(found, Membership) else None
        return {
            "stage": group.stage,
            "group": group.group,
            "lag": sum(lag.values()),
            "lag_by_topic": lag,
            "members": member.members if member is not None else None,
            "unassigned": [
                [self._names.bare(topic), number] for topic, number in (member.unassigned if member else ())
            ],
            "problem": str(found) if isinstance(found, BrokerError) else None,
        }
