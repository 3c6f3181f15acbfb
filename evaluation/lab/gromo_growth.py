"""A rival that grows too: GroMo widens the same perceptron neuron by neuron, without Tamiyo.

GroMo 0.1 (pip install gromo==0.1.0) computes which new neurons lower the loss most to first order: Verbockhaven et al.,
"Growing tiny networks: spotting expressivity bottlenecks and fixing them optimally" (2024). Here it grows the layer
with the largest first-order improvement every 50 steps, within the parameter budget that Tamiyo's kernels have. It
begins with the task's own initial values, and trains with its data and optimiser, which begins anew after each growth.
How often it grows and how many neurons at most were chosen among three settings on the seeds 0 and 1 of digits.

Its compute is that of a plain perceptron of its widths; each batch of the pass that collects its statistics, one pass
over the training data per growth, costs a training step.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tamiyo.evaluation.lab.compute import ComputeClock
from tamiyo.evaluation.lab.hosts import lab_task
from tamiyo.evaluation.lab.pipeline import default_settings
from tamiyo.evaluation.lab.run import Curve, RunResult, RunSpec
from tamiyo.host import HostSettings
from tamiyo.host._reference.tasks import Task
from tamiyo.host._reference.train import VALIDATE_INTERVAL, evaluate
from tamiyo.schemas.errors import ConfigurationError

EVERY = 50
"""Steps between two growths."""
NEURONS = 5
"""Most neurons that a growth adds."""
SCALES = (0.1, 0.25, 0.5, 1.0, 2.0)
"""By one of these the new neurons' weights are scaled, the one with the lowest loss on MEASURED samples."""
MEASURED = 256


def require_gromo(name: str = "gromo") -> None:
    """Return if GroMo is installed; raise ConfigurationError if not."""
    try:
        import gromo  # type: ignore[import-not-found] # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{name} needs a package of its own: pip install gromo==0.1.0") from error


def train_gromo(spec: RunSpec) -> RunResult:
    """Train a run's network as GroMo grows it; the same arguments give the same bits.

    Args:
        spec: The task, a perceptron whose hidden layers are of one width; seed and length.

    Raises:
        ConfigurationError: GroMo is not installed, or the network is no such perceptron.
    """
    require_gromo()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GroMo's, about singular matrices
        torch.manual_seed(spec.seed)
        return _Growth(spec).run()


class _Growth:
    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._task = lab_task(spec.task)
        self._flat, self._model = _growing(self._task, spec.seed)
        self._own = self._parameters
        with default_settings():
            self._budget = int(HostSettings().parameter_budget_ratio * self._own)
        self._begin_optimizer()
        self._plain = self._step_seconds * spec.planned
        self._compute = 0.0
        self._curve = Curve()

    @property
    def _parameters(self) -> int:
        return sum(p.numel() for p in self._model.parameters())

    def run(self) -> RunResult:
        spec, batches = self._spec, self._task.batches(self._spec.seed)
        for step in range(1, spec.planned + 1):
            _, inputs, labels = next(batches)
            self._optimizer.zero_grad()
            self._loss(inputs, labels).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._compute += self._step_seconds
            if step % VALIDATE_INTERVAL == 0:
                self._validate(step)
            if step % EVERY == 0 and step < spec.planned:
                self._grow()
        return RunResult(
            task=spec.task, seed=spec.seed, data_seed=spec.seed, steps=spec.planned, budget=self._budget,
            parameters=self._own, compute=self._plain, curve=self._curve, adaptations=[],
        )  # fmt: skip

    def _loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._model(self._flat(inputs)), labels)

    def _validate(self, step: int) -> None:
        network = nn.Sequential(self._flat, self._model)
        curve = self._curve
        curve.step.append(step)
        curve.compute.append(self._compute)
        curve.validation.append(evaluate(network, self._task.validation)[0])
        curve.test.append(evaluate(network, self._task.test)[0])
        curve.kernel_parameters.append(self._parameters - self._own)

    def _grow(self) -> None:
        """Add the neurons that promise most to one layer, unless they exceed the budget."""
        model = self._model
        model.set_growing_layers("all")
        model.init_computation()
        self._collect()
        model.compute_optimal_updates(maximum_added_neurons=NEURONS, compute_delta=False)
        model.reset_computation()
        model.select_best_update()
        layer = model.currently_updated_layer
        neurons = len(layer.eigenvalues_extension)
        more = neurons * (layer.previous_module.in_features + 1 + layer.out_features)
        if neurons == 0 or self._parameters - self._own + more > self._budget:
            layer.delete_update()
            model.currently_updated_layer_index = None
            return
        model.set_scaling_factor(min(SCALES, key=self._scaled_loss))
        model.apply_change()
        self._begin_optimizer()

    def _collect(self) -> None:
        """Let GroMo see one pass over the training data."""
        task = self._task
        for start in range(0, len(task.train) - task.batch_size + 1, task.batch_size):
            batch = task.train.take(start, start + task.batch_size)
            noise = task.noise * torch.randn(batch.inputs.shape)
            self._model.zero_grad()
            self._loss(batch.inputs + noise, batch.labels).backward()  # type: ignore[no-untyped-call]
            self._model.update_computation()
            self._compute += self._step_seconds

    @torch.no_grad()
    def _scaled_loss(self, scale: float) -> float:
        self._model.set_scaling_factor(scale)
        measured = self._task.train.take(0, MEASURED)
        return float(F.cross_entropy(self._model.extended_forward(self._flat(measured.inputs)), measured.labels))

    def _begin_optimizer(self) -> None:
        self._optimizer = self._task.optimizer(self._model)
        self._step_seconds = _step_seconds(self._task, self._model)


def _growing(task: Task, seed: int) -> tuple[nn.Module, Any]:
    """Return what flattens the inputs, and GroMo's copy of the task's network after that."""
    from gromo.containers.growing_mlp import GrowingMLP  # type: ignore[import-not-found]

    network = task.network(seed)
    modules = list(network) if isinstance(network, nn.Sequential) else [network]
    flat = modules.pop(0) if isinstance(modules[0], nn.Flatten) else nn.Identity()
    layers = [module for module in modules[::2] if isinstance(module, nn.Linear)]
    activations = {type(module) for module in modules[1::2]}
    hidden = {layer.out_features for layer in layers[:-1]}
    if len(layers) != (len(modules) + 1) // 2 or len(activations) != 1 or len(hidden) != 1:
        raise ConfigurationError(
            f"gromo grows perceptrons whose hidden layers have one width and one activation, and task {task.name} is "
            "no such: use digits, digits_deep, digits_clean or mnist1d_flat"
        )
    model = GrowingMLP(
        layers[0].in_features, layers[-1].out_features, hidden.pop(), len(layers) - 1, activation=modules[1],
        flatten=False, device=torch.device("cpu"),
    )  # fmt: skip
    for grown, layer in zip(model.layers, layers, strict=True):
        grown.layer.load_state_dict(layer.state_dict())
    return flat, model


def _step_seconds(task: Task, model: Any) -> float:
    """Return the computed time of a training step of a plain perceptron with the widths of `model`."""
    modules: list[nn.Module] = []
    for grown in model.layers:
        modules += [nn.Linear(grown.in_features, grown.out_features), nn.ReLU()]
    with torch.random.fork_rng(devices=[]):
        plain, clock = nn.Sequential(*modules[:-1]), ComputeClock()
        with clock.running(), clock.training():
            plain(task.train.inputs[: task.batch_size].flatten(1))
        clock.complete_step(task.optimizer(plain))
    return clock.training_seconds
