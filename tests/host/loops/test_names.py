"""Modules and runs of any name: escaped on the topics, and two names stay two."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from tamiyo.host import export
from tests.host.loops.loops import attached, train

ODD = ["a b", "ü/é", "x:1", "-dash", "emoji🙂", "tab\tnew\nline", "{json: 'x'}", "%2E", "a" * 300, "$", ":"]


@pytest.mark.parametrize("key", ODD)
def test_modules_and_runs_of_any_name(key: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({key: nn.Linear(8, 2), "other": nn.Linear(2, 2)})

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["other"](self.parts[key](x))

    net = Net()
    handle, transport, optimizer = attached(net, run_id=key, protected=["parts.other"])
    assert len(handle.layers) == 2
    for name in (*handle.layers, handle.run_id):
        assert re.fullmatch(r"\w[\w.:/\-]{0,199}", name)
    transport.decide("load_kernel", layer=handle.layers[0], blueprint="parallel_expansion")
    train(net, optimizer, handle, 4)
    assert handle.stats.executed == 1
    assert transport.dropped == 0
    state = copy.deepcopy(handle.state_dict())
    handle.load_state_dict(state)
    with torch.no_grad():
        assert torch.allclose(export(net)(torch.ones(1, 8)), net(torch.ones(1, 8)), atol=1e-6)
    handle.close()


def test_names_that_would_be_one_stay_two() -> None:
    model = nn.Sequential()
    model.add_module("a b", nn.Linear(8, 8))
    model.add_module("a:20:b", nn.Linear(8, 2))
    handle, _, _ = attached(model)
    assert len(set(handle.layers)) == 2
    handle.close()
