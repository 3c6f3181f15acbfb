"""The latency of a decision: mask and choice for 1, 8 and 32 graphs that wait together."""

import time
from collections.abc import Sequence

from tamiyo.evaluation.common.measure import Result, percentile
from tamiyo.evaluation.common.policies import untrained_policy
from tamiyo.models.behaviour import choose
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import decision_id, sampling_seed

BATCHES = (1, 8, 32)


def decisions(waiting: Sequence[ModelGraph], *, seconds: float, repeats: int) -> list[Result]:
    """Measure for each batch size the time until the last graph of a batch has its decision.

    Graphs pass through the network one by one, since the composition of a batch would change the last bits of the
    probabilities. Each repeat lasts `seconds`; the values are the medians of the repeats, and the percentiles are those
    of all batches together.
    """
    chooser, limits = untrained_policy(), MaskLimits()
    results = []
    for size in BATCHES:
        latencies: list[float] = []
        medians = []
        for number in range(repeats + 1):
            mine: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or not mine:
                batch = [waiting[(len(mine) * size + place) % len(waiting)] for place in range(size)]
                started = time.perf_counter()
                for graph in batch:
                    mask = legal_actions(graph, chooser.kinds, limits=limits)
                    choose(chooser, graph, mask, seed=sampling_seed(decision_id(graph.graph_id)))
                mine.append(1000 * (time.perf_counter() - started))
            if number:  # the first is the warm-up
                latencies += mine
                medians.append(percentile(mine, 0.5))
        extra = {
            "p50_ms": percentile(latencies, 0.5),
            "p99_ms": percentile(latencies, 0.99),
            "maximum_ms": max(latencies),
            "batches": len(latencies),
            "layers": len(waiting[0].layer_id),
            "budget_ms": 100.0,
        }
        name = f"{size} graph{'s' if size > 1 else ''} waiting"
        results.append(Result("decision latency", name, "ms", tuple(medians), "lower", extra))
    return results
