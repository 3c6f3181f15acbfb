"""Worker processes of a test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tests.support.workers import Process


@pytest.fixture
def start(tmp_path: Path, names: TopicNames) -> Iterator[Callable[..., Process]]:
    """Start worker processes with the pair stage; what still runs at the end is killed."""
    processes: list[Process] = []

    def begin(kafka: KafkaSettings, *arguments: str, **settings: Any) -> Process:
        processes.append(Process(kafka, names, tmp_path, *arguments, **settings))
        return processes[-1]

    yield begin
    for each in processes:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
