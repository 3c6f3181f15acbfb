"""The reference host and its static twin."""

import pytest
import torch

from tamiyo.host import Handle
from tamiyo.host._reference.tasks import load_task
from tamiyo.host._reference.train import Progress, Workload, evaluate, train
from tamiyo.host.testing import MemoryTransport
from tamiyo.schemas.telemetry import LayerHealth
from tamiyo.schemas.topics import LAYER_HEALTH, OUTCOMES, TOPOLOGY
from tests.support.runs import RUN, settings


class Watched:
    """Attaches to a transport in memory; loads a kernel at each step of `plan`."""

    def __init__(self, plan: dict[int, str] | None = None, **more: object) -> None:
        self.plan = plan or {}
        self.transport = MemoryTransport()
        self.settings = settings(**{"growth_interval": 10, "sample_interval": 10} | more)
        self.progress: list[Progress] = []

    def attach(self, workload: Workload) -> Handle:
        return workload.attach(run_id=RUN, transport=self.transport, settings=self.settings)

    def follow(self, progress: Progress) -> None:
        self.progress.append(progress)
        layer_id = self.plan.get(progress.step)
        if layer_id is not None:
            self.transport.decide("load_kernel", layer=layer_id, blueprint="parallel_expansion")


def test_watching_changes_nothing_the_static_twin_ends_bit_for_bit_the_same() -> None:
    task, watched = load_task("mnist1d"), Watched()
    with_tamiyo = train(task, seed=1, steps=120, attach_with=watched.attach)
    static = train(task, seed=1, steps=120)
    fields = ("steps", "test_accuracy", "test_loss", "validation_loss", "validation_accuracy", "parameters")
    assert [getattr(with_tamiyo, f) for f in fields] == [getattr(static, f) for f in fields]
    assert (static.overhead_ratio, static.dropped_records) == (0.0, 0)
    assert with_tamiyo.overhead_ratio > 0
    (topology,) = watched.transport.records(TOPOLOGY.name)
    assert (topology.task, topology.planned_steps, topology.parameters) == ("mnist1d", 120, 574)


def test_another_seed_is_another_run() -> None:
    task = load_task("digits")
    assert train(task, seed=1, steps=20).test_loss != train(task, seed=2, steps=20).test_loss


def test_a_grown_network_beats_its_static_twin() -> None:
    """Hand-made decisions on MNIST-1D, one layer after another; the design's table has what that was worth."""
    task = load_task("mnist1d")
    watched = Watched({100: "0", 200: "2", 300: "4"}, sample_interval=20, overhead_budget=0.08)
    grown = train(task, seed=0, steps=900, attach_with=watched.attach, on_progress=watched.follow)
    static = train(task, seed=0, steps=900)
    assert [outcome.status for outcome in watched.transport.records(OUTCOMES.name)] == ["executed"] * 3
    assert grown.parameters == 574 + 582 + 1206 + 1206
    assert grown.validation_loss < static.validation_loss - 0.15
    assert grown.test_accuracy > static.test_accuracy


def test_growth_scores_put_the_first_layer_first() -> None:
    watched = Watched()
    train(load_task("mnist1d"), seed=0, steps=600, attach_with=watched.attach)
    frames: list[LayerHealth] = [
        f for f in watched.transport.records(LAYER_HEALTH.name) if f.step > 300 and not f.final
    ]
    assert frames[0].layer_id == ["0", "2", "4", "7"]
    means = [sum(f.growth_score[i] or 0.0 for f in frames) / len(frames) for i in range(3)]
    assert means[0] == max(means)


def test_progress_is_reported_at_every_validation_and_a_run_can_be_stopped() -> None:
    reported: list[Progress] = []
    result = train(
        load_task("digits"),
        steps=100,
        validate_interval=10,
        on_progress=reported.append,
        should_stop=lambda: len(reported) == 3,
    )
    assert [progress.step for progress in reported] == [10, 20, 30]
    assert result.steps == 30
    assert reported[-1].validation_loss == pytest.approx(result.validation_loss)
    assert reported[-1].parameters == 415


def test_an_error_in_the_loop_still_ends_the_run() -> None:
    watched = Watched()

    def fail(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_task("digits"), steps=100, attach_with=watched.attach, on_progress=fail)
    assert watched.transport.closed


def test_evaluation_is_in_eval_mode_and_leaves_no_trace() -> None:
    task = load_task("digits")
    model = torch.nn.Sequential(torch.nn.Dropout(0.9), task.network(0))
    assert evaluate(model, task.test) == evaluate(model, task.test)
    assert model.training
