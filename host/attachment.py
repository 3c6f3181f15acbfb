"""`attach`: the one call that puts a training run under Tamiyo's eyes."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tamiyo.host.adaptation.executor import Executor
from tamiyo.host.adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host.adaptation.limits import Limits
from tamiyo.host.blueprints import for_layer
from tamiyo.host.blueprints.layer_spec import LayerSpec
from tamiyo.host.client.publisher import KafkaPublisher, Publisher
from tamiyo.host.client.receiver import KafkaReceiver, Receiver
from tamiyo.host.common.settings import HostSettings
from tamiyo.host.handle import Handle, Parts
from tamiyo.host.kernels.cache import KernelCache
from tamiyo.host.kernels.store import KernelStore
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.recovery import ErrorRecovery
from tamiyo.host.probes.counterfactual import HeldOutBatch
from tamiyo.host.probes.overhead import OverheadMeter
from tamiyo.host.probes.probes import Probes
from tamiyo.host.topology.topology import topology, trainable
from tamiyo.host.topology.tracing import Example, edges, execute
from tamiyo.schemas.adaptation import AdaptationOutcome, CompiledKernel, KernelStatus
from tamiyo.schemas.codec import use_registry
from tamiyo.schemas.errors import ConfigurationError, KernelError, KernelIncompatible
from tamiyo.schemas.kafka import KafkaSettings, TopicNames
from tamiyo.schemas.registry import Registry, RegistrySettings
from tamiyo.schemas.subjects import Subjects
from tamiyo.schemas.telemetry import ModelTopology
from tamiyo.schemas.topics import OUTCOMES, TOPOLOGY

log = logging.getLogger(__name__)

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    example_input: Example,
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
    registry: RegistrySettings | None = None,
    publisher: Publisher | None = None,
    receiver: Receiver | None = None,
) -> Handle:
    """Wrap a model's layers in place, publish its topology, and return the handle to call after each step.

        handle = attach(model, optimizer, example_input=inputs, loss_fn=loss_fn, held_out=(x, y))
        for inputs, labels in loader:
            loss = loss_fn(model(inputs), labels)
            optimizer.zero_grad(); loss.backward(); optimizer.step()
            handle.step(loss=loss)
        handle.close()

    Args:
        example_input: what the model takes: a batch, a tuple of arguments, or a mapping of keyword arguments. It is
            run once, in eval mode, to learn the layers' shapes and order.
        run_id: names the run on every topic; a fresh one by default.
        layers: dotted names of Linear, Conv1d and Conv2d modules, or all that run on the example.
        num_seeds: kernels a layer can carry at once.
        protected: layers that are watched but never adapted, beside those of the settings.
        loss_fn, held_out: loss_fn(model(inputs), targets) for held_out = (inputs, targets), a batch the network does
            not train on: what a kernel is worth is measured with it. Without them that stays unknown.
        task, planned_steps: what is trained and for how long, where known.
        settings, kafka, topics, registry: read from the environment unless given. A schema registry holds for the
            whole process.
        publisher, receiver: another transport in Kafka's place.

    A broker that cannot be reached is waited for at most `connect_timeout_s`; then training goes on alone. Raises
    ConfigurationError where the model has no such layers, cannot run on the example, or is attached already.
    """
    settings = settings or HostSettings()
    run_id = run_id or f"run-{uuid.uuid4().hex[:12]}"
    specs, places = _find(model, layers, example_input)
    shielded = frozenset(settings.protected_layers) | _known(protected, specs, "protected")
    modules = {layer_id: places[layer_id][0] for layer_id in specs}
    record_edges = edges(model, modules, list(specs))
    own = {layer_id: sum(p.numel() for p in module.parameters()) for layer_id, module in modules.items()}
    total = trainable(model)
    budget = settings.parameter_budget
    record = topology(
        run_id,
        specs,
        own,
        record_edges,
        num_seeds=num_seeds,
        protected=shielded,
        time_ms=int(time.time() * 1000),
        task=task,
        total_parameters=total,
        parameter_budget=int(settings.parameter_budget_ratio * total) if budget is None else budget,
        cooldown_steps=settings.cooldown_steps,
        planned_steps=planned_steps,
    )
    growing = GrowingOptimizer(optimizer)
    cache = KernelCache(KernelStore(settings.store_url), capacity=settings.cache_capacity)
    recovery = ErrorRecovery(on_replaced=growing.forget, source=cache.pristine)
    wrapped = {
        layer_id: KasminaLayer(
            modules[layer_id],
            layer_id=layer_id,
            num_seeds=num_seeds,
            ramp_steps=settings.ramp_steps,
            spec=spec,
            recovery=recovery,
            cache=cache,
        )
        for layer_id, spec in specs.items()
    }
    kafka, topics, registry = kafka or KafkaSettings(), topics or TopicNames(), registry or RegistrySettings()
    if registry.url is not None:
        use_registry(Subjects(Registry(registry), topics))  # asked by the background threads, never by training
    # Where decisions end now has to be known before the topology, which any decision about this run needs, is told.
    receiver = receiver or KafkaReceiver(
        run_id,
        kafka,
        topics,
        connect_timeout_s=settings.connect_timeout_s,
        on_kernel=lambda kernel: _prefetch(cache, kernel),
    )
    outlet = publisher or KafkaPublisher(run_id, kafka, topics, capacity=settings.queue_capacity)
    for layer_id, layer in wrapped.items():
        for parent, name in places[layer_id][1]:
            setattr(parent, name, layer)
    outlet.publish(TOPOLOGY, lambda: record)
    evaluation = None if loss_fn is None or held_out is None else HeldOutBatch(model, loss_fn, *held_out)
    meter = OverheadMeter()

    def answer(outcome: AdaptationOutcome) -> None:
        outlet.publish(OUTCOMES, lambda: outcome)

    def unwrap() -> None:
        for layer_id, layer in wrapped.items():
            if not len(layer.kernels):
                for parent, name in places[layer_id][1]:
                    setattr(parent, name, layer.base)

    return Handle(
        Parts(
            run_id=run_id,
            model=model,
            optimizer=optimizer,
            layers=wrapped,
            base_parameters=total,
            settings=settings,
            growing=growing,
            recovery=recovery,
            cache=cache,
            probes=Probes(wrapped, optimizer, meter),
            meter=meter,
            held_out=evaluation,
            publisher=outlet,
            receiver=receiver,
            executor=Executor(
                run_id,
                wrapped,
                growing=growing,
                cache=cache,
                limits=_limits(wrapped, settings, record, shielded),
                settings=settings,
                held_out=evaluation,
                publish=answer,
            ),
            unwrap=unwrap,
        )
    )


def _limits(
    layers: Mapping[str, KasminaLayer], settings: HostSettings, record: ModelTopology, protected: frozenset[str]
) -> Limits:
    offers = {layer_id: for_layer(layer.spec) for layer_id, layer in layers.items()}
    return Limits(layers, settings, parameter_budget=record.parameter_budget, protected=protected, blueprints=offers)


_Places = dict[str, tuple[nn.Module, list[tuple[nn.Module, str]]]]


def _find(
    model: nn.Module, wanted: Literal["all"] | Iterable[str], example: Example
) -> tuple[dict[str, LayerSpec], _Places]:
    """Specs of the layers to wrap, in the order in which they run, and each one's module with all its places."""
    if any(isinstance(module, KasminaLayer) for module in model.modules()):
        raise ConfigurationError("the model is attached already: detach it, or attach a fresh one")
    if isinstance(model, _KINDS):
        raise ConfigurationError(
            "the model is a single layer, which cannot be wrapped in place: put it in a Sequential"
        )
    names: dict[int, str] = {}
    places: _Places = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _KINDS):
            layer_id = names.setdefault(id(module), name)
            parent, _, attribute = name.rpartition(".")
            places.setdefault(layer_id, (module, []))[1].append((model.get_submodule(parent), attribute))
    chosen = set(places) if wanted == "all" else _known(wanted, places, "layers")
    run = execute(model, {layer_id: places[layer_id][0] for layer_id in places if layer_id in chosen}, example)
    specs: dict[str, LayerSpec] = {}
    for layer_id in run.order:
        try:
            specs[layer_id] = LayerSpec.of(layer_id, places[layer_id][0], run.inputs[layer_id])
        except KernelIncompatible as error:
            if wanted != "all":
                raise ConfigurationError(f"layer {layer_id} cannot carry kernels: {error}") from error
            log.info("layer %s is left alone: %s", layer_id, error)
    idle = chosen - set(run.order)
    if idle and wanted != "all":
        raise ConfigurationError(f"layers {', '.join(sorted(idle))} do not run on example_input")
    if not specs:
        raise ConfigurationError("no Linear, Conv1d or Conv2d of the model runs on example_input: nothing to attach to")
    return specs, places


def _known(names: Iterable[str], among: Iterable[str], what: str) -> frozenset[str]:
    asked, known = frozenset(names), frozenset(among)
    if asked - known:
        raise ConfigurationError(
            f"{what}: there is no layer {', '.join(sorted(asked - known))}; there are {', '.join(sorted(known))}"
        )
    return asked


def _prefetch(cache: KernelCache, kernel: CompiledKernel) -> None:
    """Bring a compiled kernel into memory before training asks for it; failing here, it fails there with its reason."""
    if kernel.status is KernelStatus.COMPILED:
        try:
            cache.prefetch(kernel.kernel_id, kernel.checksum)
        except KernelError as error:
            log.info("kernel %s could not be fetched ahead: %s", kernel.kernel_id, error)
