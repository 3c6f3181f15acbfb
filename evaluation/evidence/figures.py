"""Draw the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tamiyo.evaluation.evidence.reward import Rows
from tamiyo.evaluation.lab.judge import column, is_held_out

GAINS = "evidence-reward-gains.svg"
SUMS = "evidence-reward-sums.svg"
POLICY = "evidence-policy.svg"
LEARNERS = "evidence-policy-learning.svg"


def draw(decisions: Rows, runs: Rows, folder: Path) -> None:
    """Write the figures as SVG into a folder."""
    mpl.rcParams["svg.hashsalt"] = "tamiyo"  # the same rows give the same file
    known = [row for row in decisions if not is_held_out(row["task"])]
    held_out = [row for row in decisions if is_held_out(row["task"])]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
    _scatter(axes[0], known, "gain", "true_gain", "gain, known tasks, unseen seeds")
    _scatter(axes[1], held_out, "gain", "true_gain", "gain, held-out tasks")
    _scatter(axes[2], known, "near", "true_near", "near effect, known tasks")
    figure.savefig(folder / GAINS, metadata={"Date": None})
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(6, 5), constrained_layout=True)
    for policy in sorted({row["policy"] for row in runs}):
        own = [row for row in runs if row["policy"] == policy and row["adaptations"]]
        axis.errorbar(
            column(own, "true_gain"), column(own, "sum_of_worths"), yerr=column(own, "half_width"), fmt="o", ms=3,
            lw=0.4, label=policy,
        )  # fmt: skip
    _diagonal(axis)
    axis.set(xlabel="gained over never adapting, costs included (nats)", ylabel="sum of the run's rewards (nats)")
    axis.legend(fontsize=8)
    figure.savefig(folder / SUMS, metadata={"Date": None})
    plt.close(figure)


def draw_policy(baselines: Mapping[str, Any], learning: Rows, folder: Path) -> None:
    """Write the figures on the policy as SVG into a folder.

    Args:
        baselines: Differences by baseline and task, as the report has them.
        learning: Stages of learners.
        folder: Where to write.
    """
    mpl.rcParams["svg.hashsalt"] = "tamiyo"
    tasks = list(dict.fromkeys(task for each in baselines.values() for task in each))
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.2 * len(tasks), 4), sharey=True, constrained_layout=True)
    for axis, task in zip(np.atleast_1d(axes), tasks, strict=True):
        for row, (_, each) in enumerate(baselines.items()):
            if task in each:
                own = each[task]
                if own["low"] is not None:
                    axis.plot([own["low"], own["high"]], [row, row], color="C0")
                axis.plot([own["difference"]], [row], "o", color="C0", ms=4)
        axis.axvline(0.0, color="grey", lw=0.8)
        axis.set(title=task, yticks=range(len(baselines)), yticklabels=list(baselines), xlabel="nats")
    figure.suptitle("log held-out loss at equal compute, policy less the other: left of 0 the policy is better")
    figure.savefig(folder / POLICY, metadata={"Date": None})
    plt.close(figure)
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for seed in sorted({row["seed"] for row in learning}):
        own = [row for row in learning if row["seed"] == seed]
        axis.plot(column(own, "experiences"), column(own, "reward"), lw=0.8)
    axis.set(xlabel="experiences", ylabel="expected reward of a decision", title="PPO on the bandit of graphs")
    figure.savefig(folder / LEARNERS, metadata={"Date": None})
    plt.close(figure)


def _scatter(axis: Axes, rows: Rows, estimated: str, true: str, title: str) -> None:
    for task in sorted({row["task"] for row in rows}):
        own = [row for row in rows if row["task"] == task]
        axis.scatter(column(own, true), column(own, estimated), s=8, alpha=0.6, label=task)
    _diagonal(axis)
    axis.set(xlabel="true (nats)", ylabel="estimated (nats)", title=title)
    axis.legend(fontsize=6)


def _diagonal(axis: Axes) -> None:
    low, high = np.array([axis.get_xlim(), axis.get_ylim()]).T
    ends = [min(low), max(high)]
    axis.plot(ends, ends, color="grey", lw=0.8, zorder=0)
