"""A run's topology record: its layers, the blueprints that fit them, and the data flow between them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from tamiyo.host._topology.tracing import Edge
from tamiyo.host.blueprints import CATALOGUE, for_layer
from tamiyo.host.blueprints._layer_spec import LayerSpec
from tamiyo.schemas.identity import identity
from tamiyo.schemas.telemetry import BlueprintOffer, LayerEdge, LayerNode, ModelTopology


def trainable(module: nn.Module) -> int:
    """Return the number of trainable parameters of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def topology(
    run_id: str,
    specs: Mapping[str, LayerSpec],
    parameters: Mapping[str, int],
    edges: Sequence[Edge],
    *,
    num_seeds: int,
    protected: Collection[str],
    time_ms: int,
    task: str,
    total_parameters: int,
    parameter_budget: int,
    cooldown_steps: int,
    planned_steps: int | None,
) -> ModelTopology:
    """Return the record; the same network has the same topology_id in every run.

    Args:
        run_id: The run.
        specs: Geometry by layer_id, in the order of execution.
        parameters: Number of parameters by layer_id.
        edges: Data flow between the layers.
        num_seeds: Seeds of each layer.
        protected: Layers that must not be adapted; layers that are only observed are protected anyway.
        time_ms: When the run was attached, ms since the epoch, UTC.
        task: Name of the training task.
        total_parameters: Trainable parameters of the whole network.
        parameter_budget: Parameters that kernels may add.
        cooldown_steps: Smallest number of steps between two adaptations.
        planned_steps: Length of the training, if known.
    """
    layers = [
        LayerNode(
            layer_id=layer_id,
            type=spec.type,
            parameters=parameters[layer_id],
            input_shape=list(spec.sample_input_shape),
            output_shape=list(spec.sample_output_shape),
            seeds=num_seeds,
            protected=layer_id in protected or not spec.growable,
            spec=json.dumps(spec.to_dict(), separators=(",", ":")),
            blueprints=[
                BlueprintOffer(
                    name=name, parameters=CATALOGUE[name].parameters(spec), flops=CATALOGUE[name].flops(spec)
                )
                for name in for_layer(spec)
            ],
        )
        for layer_id, spec in specs.items()
    ]
    links = [LayerEdge(source=edge.source, target=edge.target, kind=edge.kind) for edge in edges]
    return ModelTopology(
        run_id=run_id,
        topology_id=identity("topology", *(part.model_dump_json() for part in (*layers, *links))),
        time_ms=time_ms,
        task=task,
        layers=layers,
        edges=links,
        parameters=total_parameters,
        parameter_budget=parameter_budget,
        cooldown_steps=cooldown_steps,
        planned_steps=planned_steps,
    )
