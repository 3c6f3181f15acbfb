"""`attach`: the one call that connects a training run to Tamiyo."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from tamiyo.host._adaptation.adapter import Adapter
from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._adaptation.replicas import Replicas, replicated, require_ranks
from tamiyo.host._client.announcement import announce
from tamiyo.host._client.kafka_transport import KafkaTransport
from tamiyo.host._client.silent_transport import SilentTransport
from tamiyo.host._client.transport import Transport
from tamiyo.host._common.arguments import AttachArguments, names
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._handle import Handle
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._kernels.store import KernelStore
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._layers.grown_kernels import GrownKernels, kernels_of
from tamiyo.host._layers.later_wrappers import require_one_run
from tamiyo.host._layers.recovery import ErrorRecovery
from tamiyo.host._layers.selection import identifier, require_known, select_layers
from tamiyo.host._layers.unwrapping import unwrapped
from tamiyo.host._probes.counterfactual import HeldOutBatch
from tamiyo.host._probes.overhead import OverheadMeter
from tamiyo.host._probes.shadow_twin import ShadowTwin, require_measurable
from tamiyo.host._sampling.sampler import Sampler
from tamiyo.host._topology.tracing import Example
from tamiyo.schemas.errors import ConfigurationError
from tamiyo.schemas.topics import TOPOLOGY

__all__ = ["attach"]

log = logging.getLogger(__name__)

NEVER = 1 << 40
"""Steps between two frames of a rank that publishes none."""


def attach(
    model: nn.Module,
    optimizer: Any,
    *,
    example_input: Example,
    run_id: str | None = None,
    layers: str | Iterable[str] = "all",
    num_seeds: int = 4,
    protected: str | Iterable[str] = (),
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    held_out: tuple[Any, Any] | None = None,
    task: str = "",
    planned_steps: int | None = None,
    twin_budget: float | None = None,
    distributed: bool | None = None,
    settings: HostSettings | None = None,
    transport: Transport | None = None,
) -> Handle:
    """Watch a model's layers, publish its topology, and return the handle to call after each step.

    The model's modules stay in place, and it computes the same as before, to the bit, until a decision is executed.
    What an earlier, detached run has grown in it stays, and is the new run's. If no broker is reachable within
    `HostSettings.connect_timeout_s`, training continues without it.

    Args:
        model: The network to train. Its Linear, Conv1d and Conv2d modules are watched and can grow; those where a
            kernel would have no effect are left alone (`Handle.left_alone`).
        optimizer: The optimiser of its parameters; kernels join and leave its param groups. Any torch optimiser except
            LBFGS and Muon.
        example_input: A batch as the model takes it: a tensor, a tuple of arguments, or a mapping of keyword arguments.
            A copy of the model runs on it, in eval and in train mode, to find the layers' shapes and order.
        run_id: Name of the run on every topic; characters that topics do not accept are escaped. Default: a fresh one.
        layers: Dotted names of the modules to watch, or one name. Default: all that run on the example.
        num_seeds: Kernels that a layer can carry at once.
        protected: Layers that are observed but never adapted, in addition to `HostSettings.protected_layers`.
        loss_fn: `loss_fn(model(inputs), targets)` returns the mean loss, nats.
        held_out: `(inputs, targets)`, a batch the network does not train on. With `loss_fn` it measures what each
            kernel contributes; without both, contributions stay unknown.
        task: Name of the training task, for the record.
        planned_steps: Length of the training, if known.
        twin_budget: Share of the training time, such as 0.1, that shadow twins may take: copies of the run without an
            adaptation, which measure what it gained. They need `loss_fn`, the loss that the loop trains on, and
            `handle.step(..., batch=...)`. 0: none. Default: `HostSettings.twin_budget`.
        distributed: Whether the ranks of torch.distributed train one run together, as with DistributedDataParallel:
            rank 0 publishes and receives, and all ranks execute the same decisions at the same step. Every rank must
            call `attach` and `Handle.step` alike. Default: yes, if there are several ranks. False: each rank is a run
            of its own.
        settings: Intervals, budgets and limits. Default: from the environment (`TAMIYO_HOST_*`).
        transport: Carries records and decisions. Default: a `KafkaTransport` configured from the environment.

    Returns:
        The handle of the run.

    Raises:
        ConfigurationError: The model has no such layers, cannot run on the example, or is attached already; the
            optimiser cannot take new parameters; the kernel store's URL cannot be opened; or there is a `twin_budget`
            without `loss_fn`, or in a distributed run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tamiyo.host import attach
        >>> from tamiyo.host.testing import MemoryTransport
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(model.parameters())
        >>> handle = attach(model, optimizer, example_input=torch.zeros(2, 4), transport=MemoryTransport())
        >>> type(model[0]).__name__
        'Linear'
        >>> list(handle.layers)
        ['0', '2']
        >>> handle.close()
    """
    checked = AttachArguments.checked(
        num_seeds=num_seeds, planned_steps=planned_steps, task=task, twin_budget=twin_budget, distributed=distributed,
        settings=settings, held_out=held_out,
    )  # fmt: skip
    if transport is not None and not callable(getattr(transport, "publish", None)):
        raise ConfigurationError(f"attach: transport: expected a Transport, got {transport!r}")
    num_seeds, planned_steps, held_out = checked.num_seeds, checked.planned_steps, checked.held_out
    settings = settings or HostSettings()
    transport = transport or KafkaTransport()
    run_id = identifier(str(run_id)) if run_id else f"run-{uuid.uuid4().hex[:12]}"
    budget = settings.twin_budget if twin_budget is None else twin_budget
    require_measurable(budget, loss_fn)
    replicas: Replicas | None = None
    if replicated() if distributed is None else distributed:
        require_ranks()
        replicas = Replicas(
            model, interval=settings.exchange_interval, check_interval=settings.sample_interval,
            timeout_s=settings.exchange_timeout_s,
        )  # fmt: skip
        run_id = replicas.agree(run_id)
        if not replicas.leads:
            held_out = None
            if isinstance(transport, KafkaTransport):
                transport = SilentTransport()
            settings = settings.model_copy(update={"sample_interval": NEVER})
    ranks = () if replicas is None else replicas.ranks
    require_one_run(model, ranks)
    model = unwrapped(model)
    with ExitStack() as undo:  # a run that cannot begin leaves the optimizers and the transport as they were
        former = _former(model)
        if former is not None:
            former.leave()
            undo.callback(former.come_back, model)
        selection = select_layers(model, "all" if layers == "all" else names(layers, "layers"), example_input)
        ids = {each.name: layer_id for layer_id, each in selection.layers.items()}
        shielded = {ids[name] for name in require_known(names(protected, "protected"), ids, "protected")}
        shielded |= {ids.get(name, name) for name in settings.protected_layers}
        shielded |= {layer_id for layer_id, each in selection.layers.items() if not each.spec.growable}
        growing = GrowingOptimizer(optimizer, model)
        undo.callback(growing.close)
        untrained = {
            layer_id: reason
            for layer_id, each in selection.layers.items()
            if (reason := growing.refusal(each.module.parameters())) is not None
        }
        for layer_id, reason in untrained.items():
            log.info("layer %s is observed and never grows: %s", layer_id, reason)
        shielded |= untrained.keys()
        cache = KernelCache(KernelStore(transport.store_url or settings.store_url), capacity=settings.cache_capacity)
        recovery = ErrorRecovery(on_replaced=growing.forget, source=cache.pristine)
        attached = AttachedModel(
            model, selection, num_seeds=num_seeds, ramp_steps=settings.ramp_steps, recovery=recovery, cache=cache
        )
        topology = attached.topology(
            run_id, selection, settings, protected=shielded, task=task, planned_steps=planned_steps
        )
        # The transport is open before any decision about this run can be made, which takes its topology.
        transport.open(run_id, settings, cache.fetch_ahead)
        undo.callback(transport.close, 0.0)
        attached.connect(example_input, ranks)
        undo.callback(attached.kernels.leave)
        if former is not None:
            attached.kernels.take_over(former)
        transport.publish(TOPOLOGY, lambda: topology)
        if replicas is None or replicas.leads:
            announce(
                run_id, transport, watched=len(attached.layers), left_alone=attached.left_alone,
                to_stderr=settings.announce,
            )  # fmt: skip
        batch = None if loss_fn is None or held_out is None else HeldOutBatch(model, loss_fn, *held_out)
        meter = OverheadMeter()
        twin: ShadowTwin | None = None
        if budget > 0 and loss_fn is not None:
            twin = ShadowTwin(
                model, growing, loss_fn, batch, meter,
                budget=budget, steps=settings.twin_steps, planned_steps=planned_steps,
            )  # fmt: skip
        adapter = Adapter(
            run_id, attached, growing, cache, transport, settings,
            held_out=batch, parameter_budget=topology.parameter_budget, protected=shielded, twin=twin,
            replicas=replicas,
        )  # fmt: skip
        if former is not None:
            adapter.take_over()
        sampler = Sampler(
            run_id, attached, growing.optimizers, adapter.executor, cache, transport, settings,
            held_out=batch, meter=meter, twins={} if twin is None else twin.results,
        )  # fmt: skip
        undo.pop_all()
        return Handle(run_id, attached, sampler, adapter, transport, meter, settings, twin)


def _former(model: nn.Module) -> GrownKernels | None:
    """Return the kernels that an earlier run has left in the model. Raises ConfigurationError if it is not over."""
    former = kernels_of(model)
    if former is not None and not former.ended:
        raise ConfigurationError("the model is attached already: detach it first, or attach a fresh one")
    return former
