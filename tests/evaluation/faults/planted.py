"""A worker with a bug for the judge to find: `python -m tests.evaluation.faults.planted BUG CRASH_AT STAGE...`.

The stages and the runner are the real ones, with one thing about them changed. At the CRASH_AT-th output of the last
stage the process ends as `kill -9` would end it; 0: never.

- `none`: nothing is changed, and the crash still comes.
- `acknowledge`: inputs are acknowledged and committed before what they close is published.
- `restore`: what the stage published before a restart is not read back.
- `identity`: a decision's id is drawn, not computed.
"""

import asyncio
import os
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tamiyo.streams.process.logs import configure
from tamiyo.streams.runtime import metrics
from tamiyo.streams.runtime.output_pipeline import OutputPipeline
from tamiyo.streams.runtime.restore import Restore, RestoredState
from tamiyo.streams.runtime.worker import run_worker
from tamiyo.streams.stages.base import Output
from tamiyo.streams.stages.decisions import decider
from tamiyo.streams.stages.registry import entry

CRASHED = 137


class Plant:
    """Puts a bug into the process, and a crash at an output of `stage`."""

    def __init__(self, bug: str, crash_at: int, stage: str) -> None:
        self.crash_at = crash_at
        self.stage = stage
        self.outputs = 0
        publish, read, observe = OutputPipeline.publish, Restore.read, metrics.observe_deliveries
        restored_outputs = [topic.name for topic in entry(stage).load().outputs]

        async def publishing(pipeline: OutputPipeline, outputs: Iterable[Any], open_offsets: Mapping[str, int]) -> None:
            outputs = list(outputs)
            if pipeline._stage == stage and any(isinstance(each, Output) for each in outputs):
                await self._before(pipeline, outputs, open_offsets, acknowledge=bug == "acknowledge")
            await publish(pipeline, outputs, open_offsets)

        async def forgetting(restore: Restore, *arguments: Any) -> Any:
            state, outputs = await read(restore, *arguments)
            forgets = list(restore._outputs) == restored_outputs
            return (RestoredState(state.positions), []) if forgets else (state, outputs)

        def observing(stage_name: str, sent: Sequence[Any]) -> None:
            observe(stage_name, sent)
            if stage_name == stage:
                before, self.outputs = self.outputs, self.outputs + len(sent)
                if before < self.crash_at <= self.outputs:
                    os._exit(CRASHED)

        if bug == "identity":
            decider.decision_id = lambda graph: uuid.uuid4().hex  # type: ignore[assignment]
        if bug == "restore":
            Restore.read = forgetting  # type: ignore[method-assign]
        if stage == "decisions":
            metrics.observe_deliveries = observing
        else:
            OutputPipeline.publish = publishing  # type: ignore[method-assign]

    async def _before(
        self, pipeline: OutputPipeline, outputs: list[Any], open_offsets: Mapping[str, int], *, acknowledge: bool
    ) -> None:
        """Acknowledge too early, if that is the bug; crash, if it is time, with all that is acknowledged committed."""
        self.outputs += sum(isinstance(each, Output) for each in outputs)
        crash = 0 < self.crash_at <= self.outputs
        while crash and pipeline.in_flight:  # noqa: ASYNC110 - no event reports it
            await asyncio.sleep(0.01)
        if acknowledge:
            pipeline._acknowledge(pipeline._bounds(open_offsets))
        if crash:
            await pipeline._publisher._app.consumer.commit()
            os._exit(CRASHED)


if __name__ == "__main__":
    bug, crash_at, *stages = sys.argv[1:]
    configure()
    Plant(bug, int(crash_at), stages[-1])
    sys.exit(run_worker(stages))
