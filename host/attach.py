"""`attach`: the one call that puts a training run under Tamiyo's eyes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tamiyo.host.handle import Handle
from tamiyo.host.settings import HostSettings
from tamiyo.schemas.kafka import KafkaSettings, TopicNames


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    example_input: Tensor | tuple[Any, ...] | Mapping[str, Any],
    run_id: str | None = None,
    layers: Literal["all"] | Iterable[str] = "all",
    num_seeds: int = 4,
    protected: Iterable[str] = (),
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    held_out: tuple[Any, Any] | None = None,
    task: str = "",
    planned_steps: int | None = None,
    settings: HostSettings | None = None,
    kafka: KafkaSettings | None = None,
    topics: TopicNames | None = None,
) -> Handle:
    """Wrap a model's layers in place, publish its topology, and return the handle to call after each step."""
    raise NotImplementedError
