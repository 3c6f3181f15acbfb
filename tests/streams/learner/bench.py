"""One installation with learners on the embedded broker, one after the other."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamiyo.models.checkpoint import CheckpointStore
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.learning import PolicyCheckpoint
from tamiyo.schemas.topics import CHECKPOINTS, EXPERIENCE
from tamiyo.streams.admin.policies import PolicyVersions
from tamiyo.streams.learner.loop import LearnerLoop
from tamiyo.streams.settings import LearnerSettings
from tests.support.experiences import make_experience
from tests.support.kafka_log import KafkaLog

BATCH = 4


class Bench:
    """One installation: a store, a broker, and learners one after the other."""

    def __init__(self, folder: Path, kafka: KafkaSettings, names: TopicNames, log: KafkaLog) -> None:
        self.url = f"file://{folder}"
        self.store = CheckpointStore(self.url)
        self.log = log
        self.parts = (kafka, names)
        self.settings: dict[str, Any] = {
            "checkpoint_url": self.url,
            "fresh_batch": BATCH,
            "batch_size": 8,
            "minibatch_size": 8,
            "update_epochs": 1,
        }

    @property
    def policies(self) -> PolicyVersions:
        """What `tamiyo policy` works with."""
        return PolicyVersions("tamiyo", self.url, *self.parts)

    def run(self, until: Callable[[LearnerLoop], bool]) -> LearnerLoop:
        """Run a learner until a condition holds, or it is killed."""
        loop = LearnerLoop(LearnerSettings(**self.settings), *self.parts)
        failed: list[BaseException] = []

        def body() -> None:
            try:
                loop.run()
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        deadline = time.monotonic() + 60
        while thread.is_alive() and not until(loop) and time.monotonic() < deadline:
            time.sleep(0.05)
        loop.stop()
        thread.join(30)
        assert not thread.is_alive()
        if failed:
            raise failed[0]
        return loop

    def learn(self, experiences: int) -> LearnerLoop:
        """Run a learner until it has counted that many experiences and none is waiting."""
        loop = self.run(lambda loop: loop.ready and done(loop, experiences))
        assert done(loop, experiences)
        return loop

    def publish(self, first: int, count: int = BATCH, **fields: Any) -> None:
        """Publish experiences of three runs."""
        made = [make_experience(n, run_id=f"run-{n % 3}", **fields) for n in range(first, first + count)]
        self.log.publish(EXPERIENCE, made)

    def announced(self) -> list[PolicyCheckpoint]:
        return [each.record(PolicyCheckpoint) for each in self.log.read(CHECKPOINTS.name)]


def done(loop: LearnerLoop, experiences: int) -> bool:
    learner = loop.learner
    return learner is not None and learner.experiences == experiences and not learner.waiting
