"""A run's state inside its optimizer's state dict, with torch alone."""

import io
from typing import Any

import pytest
import torch

from tamiyo.host import Handle
from tamiyo.integrations._carried_state import KEY, CarriedState
from tamiyo.schemas.errors import KernelError
from tests.support.runs import Run, data, network, run


def carried(seed: int = 0) -> Run:
    made = run(network(seed))
    CarriedState(made.handle, made.optimizer)
    return made


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Save and load as frameworks do; `weights_only` refuses everything but plain values and tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_who_loads_the_optimizer_restores_the_run() -> None:
    first = carried()
    first.load()
    first.train(6)
    second = carried(seed=7)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    second.losses = list(first.losses)  # the same data from here on
    first.train(3)
    second.train(3)
    assert second.losses == first.losses
    assert second.handle.stats.step == 9
    inputs = data()[0]
    assert torch.equal(second.model(inputs), first.model(inputs))


def test_the_optimizers_own_state_is_as_without_it(caplog: pytest.LogCaptureFixture) -> None:
    made, plain = carried(), run()
    made.train(3)
    plain.train(3)
    own, state = made.optimizer.state_dict(), plain.optimizer.state_dict()
    assert KEY not in state
    assert own["param_groups"] == state["param_groups"]
    assert own["state"].keys() == state["state"].keys()
    assert own[KEY].keys() == made.handle.state_dict().keys()
    assert caplog.text == ""


def test_a_state_from_before_loads() -> None:
    plain, made = run(), carried(seed=7)
    plain.train(3)
    made.optimizer.load_state_dict(through_a_file(plain.optimizer.state_dict()))
    assert made.handle.stats.step == 0
    made.train(2)


def test_a_run_that_cannot_be_saved_leaves_the_checkpoint_to_the_user(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Handle) -> None:
        raise KernelError("a kernel's blueprint is not in the catalogue any more")

    made = carried()
    monkeypatch.setattr(Handle, "state_dict", failing)
    state = made.optimizer.state_dict()
    assert KEY not in state
    assert len(state["param_groups"]) == 1
    assert "the checkpoint lacks the state of run run-1" in caplog.text


def test_parameters_that_are_not_the_models_travel_too() -> None:
    first, second = carried(), carried(seed=7)
    for made in (first, second):
        made.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5})
    first.train(3)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    assert second.handle.stats.step == 3
    assert [group["lr"] for group in second.optimizer.param_groups] == [0.01, 0.5]
