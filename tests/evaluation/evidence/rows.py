"""Rows of judged decisions and runs with known statistics."""

import math
from typing import Any

import numpy as np

from tamiyo.evaluation.lab.judge import Judged, JudgedRun, rows
from tamiyo.streams.stages.rewards.components import ACCURACY, WEIGHTS


def decision_rows(count: int = 40, error: float = 0.05) -> list[dict[str, Any]]:
    """Decisions whose estimates miss the truth by `error`, above and below in turn; every fourth task is held out."""
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        gain = float(rng.normal(0.1, 0.2))
        miss = error if index % 2 else -error
        found.append(
            Judged(
                task="mixer" if index % 4 == 0 else "digits",
                policy="heuristic",
                seed=index,
                decision_id=f"{index:032x}",
                type="load_kernel",
                layer_id="0",
                blueprint="bottleneck",
                step=100,
                true_gain=gain,
                true_worth=gain / 2,
                true_near=gain / 3,
                true_near_100=gain / 4,
                true_near_600=math.nan,
                true_near_equal_compute=gain / 5,
                repeated_gain=gain if index < 20 else math.nan,
                reordered_worth=gain / 2 if index < 20 else math.nan,
                redrawn_worth=gain if 4 <= index < 20 else math.nan,
                hindsight_worth=-gain if index < 20 else math.nan,
                cost=0.02,
                gain=gain + miss,
                gains=[gain + 2 * miss, gain + miss],
                half_width=0.06 if index % 10 else 0.01,
                near=gain / 3,
                near_half_width=0.1,
                near_with_twin=gain / 3,
                gain_with_twin=gain,
                total=math.tanh(gain),
                components={name: gain if name == ACCURACY else 0.5 for name in WEIGHTS},
                rule_total=-gain,
            )
        )
    return rows(found)


def run_rows() -> list[dict[str, Any]]:
    """Ten runs of two policies; the sums of pump are .3 too high and outside their interval."""
    found = [
        JudgedRun("digits", policy, seed, 3, 0.1 * seed + extra, 0.1, 0.1 * seed, 0.5, 0.4, 1.5)
        for policy, extra in (("heuristic", 0.05), ("pump", 0.3))
        for seed in range(10)
    ]
    return rows(found)
