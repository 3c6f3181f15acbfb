"""Golden decisions: made-up situations in which an action is obviously wrong, whatever a policy has learned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import blueprint_of
from tamiyo.models.batch import GraphBatch
from tamiyo.models.graph import build_graph
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.analysis import HealthWindow, LayerStats, ModelGraph, ModelStats, statistics_columns
from tamiyo.schemas.telemetry import BlueprintOffer, LayerEdge, LayerNode, ModelTopology

LAYERS = ("first", "middle", "last")
KERNEL_LAYER = 1  # index of the layer that has a kernel, in the situations with one
WINDOWS = 10  # longer than any trend or streak that a feature covers
WIDTH = 50  # steps of a window
PLANNED_STEPS = 1000
PARAMETERS = 600
KERNEL_PARAMETERS = 500

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GoldenDecision:
    """A graph with its legal actions, and the actions that are wrong."""

    name: str
    batch: GraphBatch
    """A batch of one graph."""
    wrong: Mask
    """[actions]."""


def golden_decisions(kinds: Sequence[str]) -> list[GoldenDecision]:
    """Return the golden decisions for a policy with these kinds of action."""
    cases: list[tuple[str, ModelGraph, bool, Callable[[ModelGraph], Mask]]] = [
        ("a paused run is not adapted", _graph(kinds), True, lambda graph: _but_no_op(graph, kinds)),
        (
            "nothing is loaded beyond the parameter budget",
            _graph(kinds, budget=KERNEL_PARAMETERS - 1),
            False,
            lambda graph: _actions(graph, kinds, lambda kind, _: blueprint_of(kind) is not None),
        ),
        (
            # Its newest measurement is positive by a hair, which makes the action legal.
            "a kernel that has contributed nothing for long is not made permanent",
            _graph(kinds, contributions=[-1e-3] * (WINDOWS - 1) + [1e-6]),
            False,
            lambda graph: _actions(graph, kinds, _at_kernel(DecisionType.FOSSILIZE_KERNEL)),
        ),
        (
            "a kernel that has lowered the loss for long is not unloaded",
            _graph(kinds, contributions=[0.5] * WINDOWS),
            False,
            lambda graph: _actions(graph, kinds, _at_kernel(DecisionType.UNLOAD_KERNEL)),
        ),
    ]
    return [
        GoldenDecision(
            name,
            GraphBatch.of([graph], kinds, [legal_actions(graph, kinds, limits=MaskLimits(), paused=paused)]),
            wrong(graph),
        )
        for name, graph, paused, wrong in cases
    ]


def _at_kernel(kind: str) -> Callable[[str, int], bool]:
    return lambda each, node: each == kind and node == KERNEL_LAYER


def _actions(graph: ModelGraph, kinds: Sequence[str], chosen: Callable[[str, int], bool]) -> Mask:
    """Return which actions are chosen by kind and node, bool [1 + nodes x kinds]."""
    return np.array([False, *(chosen(kind, node) for node in range(len(graph.layer_id)) for kind in kinds)])


def _but_no_op(graph: ModelGraph, kinds: Sequence[str]) -> Mask:
    return _actions(graph, kinds, lambda kind, node: True)


def _graph(
    kinds: Sequence[str], *, contributions: Sequence[float] = (), budget: int = 100 * KERNEL_PARAMETERS
) -> ModelGraph:
    """Return the graph of a healthy small network, with a kernel if `contributions` has one value a window."""
    offers = [
        BlueprintOffer(name=name, parameters=KERNEL_PARAMETERS, flops=10_000)
        for name in map(blueprint_of, kinds)
        if name is not None
    ]
    topology = ModelTopology(
        run_id="golden",
        topology_id="golden",
        time_ms=0,
        layers=[
            LayerNode(
                layer_id=layer,
                type="linear",
                parameters=PARAMETERS // len(LAYERS),
                input_shape=[8],
                output_shape=[8],
                seeds=4,
                blueprints=offers,
            )
            for layer in LAYERS
        ],
        edges=[LayerEdge(source=a, target=b) for a, b in pairwise(LAYERS)],
        parameters=PARAMETERS,
        parameter_budget=budget,
        planned_steps=PLANNED_STEPS,
    )
    windows = [_window(number, contributions[number] if contributions else None) for number in range(WINDOWS)]
    return build_graph(windows[-1], topology, windows[:-1])


def _window(number: int, contribution: float | None) -> HealthWindow:
    kernel = [float(contribution is not None and node == KERNEL_LAYER) for node in range(len(LAYERS))]
    metrics: Mapping[str, Sequence[float | None]] = {
        "health": [1.0] * len(LAYERS),
        "execution_latency_ms": [0.2] * len(LAYERS),
        "gradient_norm": [0.3] * len(LAYERS),
        "update_ratio": [1e-3] * len(LAYERS),
        "growth_score": [0.05] * len(LAYERS),
        "activation_variance": [0.8] * len(LAYERS),
        "dead_neuron_ratio": [0.1] * len(LAYERS),
        "avg_correlation": [0.3] * len(LAYERS),
        "cache_hit_rate": [1.0] * len(LAYERS),
        "contribution": [contribution if active else None for active in kernel],
        "alpha": kernel,
        "active_seeds": kernel,
        "dormant_seeds": [4.0 - active for active in kernel],
        "kernel_parameters": [KERNEL_PARAMETERS * active for active in kernel],
    }
    # The loss falls slowly and evenly, and the network generalises.
    model = {
        "train_loss": 1.2 - 0.01 * number,
        "validation_loss": 1.25 - 0.01 * number,
        "validation_accuracy": 0.5,
        "parameters": PARAMETERS + KERNEL_PARAMETERS * sum(kernel),
        "base_parameters": float(PARAMETERS),
        "step_time_ms": 2.0,
    }
    return HealthWindow(
        run_id="golden",
        window_id=f"golden-{number}",
        clock="step",
        start=WIDTH * number,
        end=WIDTH * (number + 1),
        first_step=WIDTH * number,
        last_step=WIDTH * (number + 1) - 1,
        time_ms=1000 * (number + 1),
        layer_id=list(LAYERS),
        columns=statistics_columns({name: _layer_stats(values) for name, values in metrics.items()}),
        model_metrics={
            name: ModelStats(count=5, mean=value, variance=0.0, minimum=value, maximum=value, last=value, slope=0.0)
            for name, value in model.items()
        },
        signals=5 * len(LAYERS),
        frames=5,
        signals_digest="golden",
    )


def _layer_stats(values: Sequence[float | None]) -> LayerStats:
    """Return the statistics of a metric that kept one value a layer through the window."""
    kept = np.array(values, dtype=np.float64)
    constant = 0.0 * kept
    return LayerStats(
        count=np.where(np.isnan(kept), 0.0, 5.0),
        mean=kept,
        variance=constant,
        minimum=kept,
        maximum=kept,
        last=kept,
        slope=constant,
    )
