"""Every wrong argument of `attach` is a ConfigurationError that names it, and leaves the model alone."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.host import attach
from tamiyo.host._layers.grown_kernels import kernels_of
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.errors import ConfigurationError

WRONG = [
    *(("num_seeds", value) for value in (-1, 1.5, None, "many", 10**6)),
    *(("planned_steps", value) for value in (-5, 1.5, math.nan, math.inf, 10**20, "x")),
    *(("task", value) for value in ("x" * 5000, None, 7)),
    *(("protected", value) for value in (7, [3], None, "head", ["0", "head"])),
    *(("layers", value) for value in (7, [3], None, "alles", ["0", "head"])),
    *(("held_out", value) for value in (7, (torch.zeros(4, 8),), torch.zeros(3, 8))),
    *(("twin_budget", value) for value in (-1, math.nan, math.inf, "a")),
    *(("settings", value) for value in ({"sample_interval": 5}, "default", 7)),
    *(("transport", value) for value in ("kafka", 7)),
    *(("distributed", value) for value in ("perhaps", 7)),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value)[:20])
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"example_input": torch.zeros(4, 8), "transport": MemoryTransport(), "loss_fn": F.cross_entropy}
    with pytest.raises(ConfigurationError, match=name):
        attach(model, optimizer, **options | {name: value})
    assert kernels_of(model) is None
    assert not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]


def test_one_name_needs_no_list() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    transport = MemoryTransport()
    handle = attach(
        model, optimizer, example_input=torch.zeros(4, 8), layers="2", protected="2", planned_steps=100.0,
        transport=transport,
    )  # fmt: skip
    assert handle.layers == ("2",)
    (topology,) = transport.records("tamiyo.model.topology")
    assert [layer.protected for layer in topology.layers] == [True]
    assert topology.planned_steps == 100
    handle.close()
