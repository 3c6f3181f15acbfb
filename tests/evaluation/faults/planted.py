"""A worker with a bug for the judge to find: `python -m tests.evaluation.faults.planted BUG CRASH_AT STAGE...`.

The stages and the shell are the real ones, with one thing about them changed. At the CRASH_AT-th output of the last
stage the process ends as `kill -9` would end it; 0: never.

- `none`: nothing is changed, and the crash comes all the same.
- `acknowledge`: inputs are acknowledged and committed before what they close is published.
- `recall`: what the stage said before a restart is not read back.
- `identity`: a decision's id is drawn, not computed.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import Iterable
from typing import Any

from tamiyo.streams.process.logs import configure
from tamiyo.streams.runtime.partition_task import PartitionTask, RestoredState
from tamiyo.streams.runtime.stage_runner import StageRunner
from tamiyo.streams.runtime.worker import run_worker
from tamiyo.streams.stages.base import Output
from tamiyo.streams.stages.decisions import stage as decisions

CRASHED = 137


class Plant:
    """Puts a bug into the process, and a crash at an output of `stage`."""

    def __init__(self, bug: str, crash_at: int, stage: str) -> None:
        self.crash_at = crash_at
        self.stage = stage
        self.outputs = 0
        publish, recall, observe = PartitionTask._publish, StageRunner._recall, PartitionTask._observe

        async def publishing(tenure: PartitionTask, said: Iterable[Any]) -> None:
            said = list(said)
            if tenure.stage_name == stage and any(isinstance(each, Output) for each in said):
                await self._before(tenure, said, acknowledge=bug == "acknowledge")
            await publish(tenure, said)

        async def forgetting(shell: StageRunner, *arguments: Any) -> Any:
            memory, said = await recall(shell, *arguments)
            return (RestoredState(memory.positions), []) if shell.name == stage else (memory, said)

        def observing(tenure: PartitionTask, each: Any, received: float | None) -> None:
            observe(tenure, each, received)
            if tenure.stage_name == stage:
                self.outputs += 1
                if self.outputs == self.crash_at:
                    os._exit(CRASHED)

        if bug == "identity":
            decisions.decision_id = lambda graph: uuid.uuid4().hex  # type: ignore[assignment]
        if bug == "recall":
            StageRunner._recall = forgetting  # type: ignore[method-assign]
        if stage == "decisions":
            PartitionTask._observe = observing  # type: ignore[method-assign]
        else:
            PartitionTask._publish = publishing  # type: ignore[method-assign]

    async def _before(self, tenure: PartitionTask, said: list[Any], *, acknowledge: bool) -> None:
        """Acknowledge too early, if that is the bug; crash, if it is time, with all that is acknowledged committed."""
        self.outputs += sum(isinstance(each, Output) for each in said)
        crash = 0 < self.crash_at <= self.outputs
        while crash and tenure._sent:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        if acknowledge:
            tenure._acknowledge(tenure._bounds())
        if crash:
            shell: Any = tenure._connection
            await shell.app.consumer.commit()
            os._exit(CRASHED)


if __name__ == "__main__":
    bug, crash_at, *stages = sys.argv[1:]
    configure()
    Plant(bug, int(crash_at), stages[-1])
    sys.exit(run_worker(stages))
