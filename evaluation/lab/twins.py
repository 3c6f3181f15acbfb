"""Exact twins: the process of a run forks, and the copy takes another action where the run takes its own.

A fork copies everything that a run is: parameters, optimiser, random state, hooks, stages, computed time. So twins
differ in nothing but what one of them decides differently.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from tamiyo.evaluation.lab.baselines import Baseline, Never, certain
from tamiyo.evaluation.lab.run import Run, RunResult
from tamiyo.models.behaviour import Choice
from tamiyo.schemas.errors import TamiyoError


class TwinError(TamiyoError):
    """A twin ended without a result."""


def forked(work: Callable[[], Any]) -> Any:
    """Run `work` in a fork of this process and return its result, which must be JSON; raises TwinError if it fails."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(json.dumps(work()).encode())
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, ended = os.waitpid(child, 0)
    if ended != 0:
        raise TwinError(f"the twin process ended with status {os.waitstatus_to_exitcode(ended)}")
    return json.loads(data)


def twin(
    run: Run,
    choice: Choice | int = 0,
    *,
    policy: Baseline | None = None,
    horizon: int | None = None,
    compute: float = math.inf,
    data_seed: int | None = None,
) -> RunResult:
    """Return what becomes of the run if another action is taken at the waiting graph; the run itself stays there.

    Args:
        run: A run that waits for a decision.
        choice: The action instead, or its index; it must be legal. By default no_op.
        policy: Decides from then on; by default the run's own policy. `Never()` adds nothing to the action.
        horizon: Steps after which the twin ends; None: the end of the run. For a comparison at equal compute, look up
            the curve.
        compute: Computed training time at which a twin without a policy ends, seconds.
        data_seed: Goes on with another order of the data; None: the same.

    Raises:
        TwinError: The twin failed.
    """
    graph = run.graph
    assert graph is not None, "no graph waits for a decision"
    mask = run.pipeline.mask(graph)
    chosen = certain(choice, mask) if isinstance(choice, int) else choice
    if not mask[chosen.index]:
        raise TwinError(f"action {chosen.index} is not legal at this graph")

    def work() -> dict[str, Any]:
        run.decide(chosen)
        if data_seed is not None:
            run.reorder(data_seed)
        if policy is not None:
            run.pipeline.policy = policy
        if isinstance(policy, Never):
            run.mute(compute)
        until = None if horizon is None else run.step + horizon
        while (until is None or run.step < until) and run.advance() is not None:
            if until is not None and run.step >= until:
                break
            run.decide()
        return run.result().to_dict()

    return RunResult.from_dict(forked(work))
