"""Exact twins: the process of a run forks, and the copy takes another action where the run takes its own.

A fork copies everything that a run is: parameters, optimiser, random state, hooks, stages, computed time. So twins
differ in nothing but what one of them decides differently.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from tamiyo.evaluation.lab.baselines import Baseline, Never, certain
from tamiyo.evaluation.lab.run import Run, RunResult
from tamiyo.models.behaviour import Choice
from tamiyo.schemas.errors import TamiyoError


class TwinError(TamiyoError):
    """A twin ended without a result."""


def forked(work: Callable[[], Any]) -> Any:
    """Run `work` in a fork of this process and return its result, which must be JSON.

    Raises TwinError with the reason if it fails. An interrupted wait ends the fork.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _work_and_exit(work, read, write)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, ended = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    if status != 0:
        reason = data.decode(errors="replace") or f"its process ended with status {status}"
        raise TwinError(f"the twin failed: {reason}")
    return json.loads(data)


def _work_and_exit(work: Callable[[], Any], read: int, write: int) -> NoReturn:
    """Write the result of `work`, or the reason of its failure, and end this process without any cleanup."""
    status = 1
    try:
        os.close(read)
        with os.fdopen(write, "wb") as pipe:
            try:
                pipe.write(json.dumps(work()).encode())
                status = 0
            except BaseException as error:
                pipe.write(f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(status)


def twin(
    run: Run,
    choice: Choice | int = 0,
    *,
    policy: Baseline | None = None,
    horizon: int | None = None,
    compute: float = math.inf,
    data_seed: int | None = None,
    stream: int = 0,
    delay: int = 0,
) -> RunResult:
    """Return what becomes of the run if another action is taken at the waiting graph; the run itself stays there.

    Args:
        run: A run that waits for a decision.
        choice: The action instead, or its index; it must be legal. By default no_op.
        policy: Decides from then on; by default the run's own policy. `Never()` adds nothing to the action.
        horizon: Steps after which the twin ends; None: the end of the run. For a comparison at equal compute, look up
            the curve.
        compute: Computed training time of the whole run at which a twin under `Never()` ends, seconds.
        data_seed: Goes on with another order of the data; None: the same.
        stream: The policy goes on with this random stream; 0: its own.
        delay: Steps for which the action waits: the twin takes no_op until the first graph after them at which the
            action is legal.

    Raises:
        TwinError: The action is not legal, or the twin failed.
    """
    graph = run.graph
    assert graph is not None, "no graph waits for a decision"
    mask = run.pipeline.mask(graph)
    index = choice if isinstance(choice, int) else choice.index
    if not 0 <= index < len(mask) or not mask[index]:
        raise TwinError(
            f"action {index} is not legal at this graph; legal are {', '.join(map(str, np.flatnonzero(mask)))}"
        )
    chosen = certain(choice, mask) if isinstance(choice, int) else choice

    def work() -> dict[str, Any]:
        if delay:
            _wait(run, index, run.step + delay)
        if run.graph is not None:
            run.decide(chosen)
        if data_seed is not None:
            run.reorder(data_seed)
        if stream:
            run.pipeline.stream = stream
        if policy is not None:
            run.pipeline.policy = policy
        if isinstance(policy, Never):
            run.mute(compute)
        until = None if horizon is None else run.step + horizon
        while run.advance(until) is not None:
            run.decide()
        return run.result().to_dict()

    return RunResult.from_dict(forked(work))


def _wait(run: Run, index: int, until: int) -> None:
    """Decide no_op until the first graph from step `until` on at which action `index` is legal, or the run's end."""
    while (graph := run.advance()) is not None:
        mask = run.pipeline.mask(graph)
        if run.step >= until and mask[index]:
            return
        run.decide(certain(0, mask))
