"""Every network of the laboratory trains with Tamiyo attached, grows without a jump, and is the same again."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tamiyo.host import Handle
from tamiyo.host._reference.tasks import HELD_OUT_TASKS, LAB_TASKS, TASKS, load_task
from tamiyo.host._reference.train import Workload, steps
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import OUTCOMES, TOPOLOGY
from tests.support.runs import settings

NEW = [name for name in (*LAB_TASKS, *HELD_OUT_TASKS) if name not in TASKS]

PLACES = {
    "chars": [("blocks.0.attention.qkv", "parallel_expansion"), ("blocks.2.mlp.2", "low_rank"), ("head", "bottleneck")],
    "resnet": [
        ("stem", "parallel_expansion"),
        ("stages.0.conv2", "squeeze_excite"),
        ("stages.1.conv1", "depthwise_separable"),
        ("stages.2.skip.0", "bottleneck"),
    ],
    "charconv": [
        ("layers.0", "parallel_expansion"),
        ("layers.4", "depthwise_separable"),
        ("layers.8", "squeeze_excite"),
        ("head", "low_rank"),
    ],
    "mixer": [
        ("embedding", "parallel_expansion"),
        ("blocks.0.tokens.0", "parallel_expansion"),
        ("blocks.1.channels.2", "low_rank"),
    ],
}


class Grown:
    """A run of a task with a transport in memory."""

    def __init__(self, name: str, *, planned_steps: int = 60) -> None:
        self.transport = MemoryTransport()
        self.workload = Workload.of(load_task(name), seed=0, steps=planned_steps)
        self.handle: Handle = self.workload.attach(
            run_id=name,
            transport=self.transport,
            settings=settings(sample_interval=10, growth_interval=20, contribution_interval=20, parameter_budget=10**7),
        )
        self._steps = steps(self.workload, self.handle)

    def train(self, count: int) -> list[float]:
        return [float(next(self._steps).detach()) for _ in range(count)]

    def logits(self, inputs: Tensor) -> Tensor:
        model = self.workload.model.eval()
        with torch.no_grad():
            logits: Tensor = model(inputs)
        model.train()
        return logits

    @property
    def topology(self) -> ModelTopology:
        (found,) = self.transport.records(TOPOLOGY.name)
        return found


@pytest.mark.parametrize("name", NEW)
def test_a_network_grows_without_a_jump_and_trains_on(name: str) -> None:
    run = Grown(name)
    held_out = run.workload.task.held_out(16).inputs
    losses = run.train(30)
    for layer, blueprint in PLACES[name]:
        run.transport.decide("load_kernel", layer=layer, blueprint=blueprint)
        before = run.logits(held_out)
        run.handle.step(loss=losses[-1])  # the decision is executed here, and no parameter changes
        assert run.handle.stats.executed == PLACES[name].index((layer, blueprint)) + 1
        torch.testing.assert_close(run.logits(held_out), before, rtol=0, atol=1e-5)
    at_load = run.handle.stats.kernel_parameters
    kernels = [p for n, p in run.workload.model.named_parameters() if ".kernels." in n]
    assert sum(p.numel() for p in kernels) == at_load > 0
    frozen = [p.detach().clone() for p in kernels]
    losses += run.train(30)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert any(not torch.equal(new, old) for new, old in zip(kernels, frozen, strict=True))
    assert {outcome.status for outcome in run.transport.records(OUTCOMES.name)} == {"executed"}
    assert run.handle.stats.errors == 0
    assert run.handle.stats.dropped_records == 0
    run.handle.close()


@pytest.mark.parametrize("name", NEW)
def test_the_same_seed_is_the_same_run(name: str) -> None:
    def losses(seed: int) -> list[float]:
        torch.seed()  # whatever the global random state is
        training = steps(Workload.of(load_task(name), seed=seed, steps=20), None)
        return [float(next(training).detach()) for _ in range(20)]

    first = losses(0)
    assert losses(0) == first
    assert losses(1) != first


@pytest.mark.parametrize("name", NEW)
def test_data_flow_is_traced_and_no_weight_is_shared(name: str) -> None:
    run = Grown(name)
    assert {edge.kind for edge in run.topology.edges} <= {"data", "skip"}
    assert any(edge.kind == "skip" for edge in run.topology.edges) == (name != "charconv")
    run.handle.close()
    model = load_task(name).network(0)
    assert len(list(model.named_parameters(remove_duplicate=False))) == len(list(model.parameters()))


def test_no_kernel_lets_the_transformer_read_ahead() -> None:
    """Its labels are its own later inputs, so a kernel that mixed positions would give them away."""
    run = Grown("chars")
    losses = run.train(1)
    loads = [
        (layer.layer_id, offer.name)
        for layer in run.topology.layers
        if layer.layer_id.startswith(("blocks.0", "head"))
        for offer in layer.blueprints
    ]
    assert len(loads) == 15
    for layer, blueprint in loads:
        run.transport.decide("load_kernel", layer=layer, blueprint=blueprint)
        run.handle.step(loss=losses[-1])
    assert run.handle.stats.executed == len(loads)
    run.train(5)  # the kernels are no longer zero
    text = run.workload.task.validation.inputs[:4]
    changed = text.clone()
    changed[:, 40:] = 0
    before, after = run.logits(text), run.logits(changed)
    torch.testing.assert_close(after[:, :, :40], before[:, :, :40])
    assert not torch.allclose(after[:, :, 40:], before[:, :, 40:], atol=1e-2)
    run.handle.close()


def test_the_convolutions_read_every_character_of_their_context() -> None:
    task = load_task("charconv")
    model, text = task.network(0), task.validation.inputs[:1]
    vectors = model.get_submodule("embedding")(text).detach().requires_grad_()
    features = model.get_submodule("layers")(vectors.transpose(1, 2))
    assert features.shape == (1, 16, 1)
    F.softplus(features).sum().backward()  # type: ignore[no-untyped-call]
    assert vectors.grad is not None
    assert bool((vectors.grad.abs().sum(dim=2) > 0).all())


def test_the_mixer_takes_patches_of_neighbouring_pixels() -> None:
    model = load_task("mixer").network(0)
    seen: list[Tensor] = []
    model.get_submodule("embedding").register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    image = torch.arange(28 * 28.0).reshape(1, 1, 28, 28)
    model(image)
    assert seen[0].shape == (1, 16, 49)
    assert torch.equal(seen[0][0, 6].reshape(7, 7), image[0, 0, 7:14, 14:21])
