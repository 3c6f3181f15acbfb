"""Adaptations of an attached model: decisions in, a changed network and outcomes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from tamiyo.host._adaptation.executor import Executor
from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._adaptation.limits import Limits
from tamiyo.host._adaptation.replicas import Replicas
from tamiyo.host._adaptation.weight_following import WeightFollower
from tamiyo.host._client.transport import InboundRecord, Transport
from tamiyo.host._common import clock
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.attached_model import AttachedModel
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._probes.counterfactual import HeldOutBatch
from tamiyo.host._probes.shadow_twin import ShadowTwin
from tamiyo.host.blueprints import for_layer
from tamiyo.schemas.adaptation import AdaptationOutcome
from tamiyo.schemas.errors import AdaptationRefused
from tamiyo.schemas.topics import OUTCOMES

log = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.01


class Adapter:
    """Advances the kernels and executes the decisions that have arrived, between two steps of training."""

    def __init__(
        self,
        run_id: str,
        model: AttachedModel,
        growing: GrowingOptimizer,
        cache: KernelCache,
        transport: Transport,
        settings: HostSettings,
        *,
        held_out: HeldOutBatch | None,
        parameter_budget: int,
        protected: Collection[str],
        twin: ShadowTwin | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        """Build the executor and its limits."""
        self._cache = cache
        self._replicas = replicas
        self._followers: list[WeightFollower] = []
        if replicas is not None:
            model.defer_errors()
            model.kernels.on_change = self._average
        self._model = model
        self._growing = growing
        self._transport = transport
        self.on_outcome: Callable[[AdaptationOutcome], None] | None = None
        """Called with every outcome, after it was handed to the transport."""
        self.executor = Executor(
            run_id,
            model.layers,
            growing=growing,
            cache=cache,
            limits=Limits(
                model.layers,
                settings,
                parameter_budget=parameter_budget,
                protected=protected,
                blueprints={layer_id: for_layer(layer.spec) for layer_id, layer in model.layers.items()},
            ),
            settings=settings,
            held_out=held_out,
            publish=self._publish,
            twin=twin,
            clock=clock.seconds if replicas is None else replicas.seconds,
            obstacle=model.obstacle,
        )

    def advance(self, step: int, *, sampled: bool = False) -> bool:
        """Move the grown layers on to `step`, then execute what has arrived and is ready.

        Args:
            step: The training step just completed.
            sampled: Whether it was measured, so that reading values of kernels may wait for the device.

        Returns:
            Whether an optimiser has stepped since the last call.
        """
        try:
            stepped = self._growing.complete_step()
            if self._model.outdated:
                self._follow_model()
            if self._replicas is None and sampled:
                self._model.keep_kernels()
                self._model.check_kernels()
            elif self._replicas is not None and self._replicas.checks(step):
                self._model.keep_kernels()
                self._model.check_kernels(self._replicas.worst)
            for layer in self._model.grown:
                for dropped in layer.advance(step):
                    self._growing.drop(dropped.kernel.parameters())
                    self._refresh()
            if self._replicas is None:
                arrived = self._transport.receive()
            else:
                arrived = self._replicas.exchange(step, self._transport, self._cache)
            together = self._replicas is None or not self._replicas.apart
            if together and (arrived or self.executor.open):
                self._execute(arrived, step)
            return stepped
        finally:
            for follower in self._followers:
                follower.update()

    def _execute(self, arrived: Sequence[InboundRecord], step: int) -> None:
        """Execute what is ready of the decisions that have arrived now or earlier."""
        for record in arrived:
            self.executor.take(record, step)
        resolved = self.executor.counts.resolved
        if self.executor.run(step):
            self._refresh()
        if self._replicas is not None and self.executor.counts.resolved > resolved:
            self._keep_common(self._replicas)

    def follow(self, averaged: nn.Module | MutableMapping[str, Tensor]) -> None:
        """Keep averaged weights in step with what grows. Raises ConfigurationError if they are not of this model."""
        self._followers.append(WeightFollower(self._model.model, averaged))

    def take_over(self) -> None:
        """Train the kernels that the model has kept from an earlier run; where nothing is trained, they stay as is."""
        self._refresh()
        for layer in self._model.grown:
            if self._replicas is not None:
                self._average(layer)
            for seed in layer.seeds:
                if seed.kernel is not None:
                    try:
                        self.executor.train(layer, seed)
                    except AdaptationRefused as refusal:
                        log.info("kernel %s at layer %s is not trained: %s", seed.kernel_id, layer.layer_id, refusal)

    def drain(self, step: int, timeout_s: float) -> None:
        """End the run at `step`: refuse what is open, and every decision that arrives in the next `timeout_s` seconds.

        Returns as soon as the decision about the last step has arrived, since decisions of a run arrive in order.
        """
        self._take(step)
        self.executor.end(step)
        deadline = time.monotonic() + timeout_s
        while self._transport.awaits_decisions and time.monotonic() < deadline:
            if (self.executor.latest_decision_step or -1) >= step:
                return
            time.sleep(_DRAIN_POLL_S)
            self._take(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state by parameter name, slowed layers' scales, and the last adaptation's step."""
        return {
            "optimizer": self._growing.state_dict(self._model.model),
            "scales": self.executor.scales(),
            "last_adaptation": self.executor.last_step,
        }

    def require_loadable(self, saved: Mapping[str, Any]) -> None:
        """Return if the optimisers can resume from `saved`, before the model is changed.

        Raises:
            KernelError: They cannot, or the ranks of a distributed run load different states.
        """
        if self._replicas is not None:
            self._replicas.require_equal(saved)
        self._model.require_loadable(saved["model"])
        shapes = {name: value.shape for name, value in saved["model"].items() if isinstance(value, Tensor)}
        self._growing.require_loadable(self._model.model, saved["optimizer"], shapes)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from `state_dict`, after the model has loaded its own. Raises KernelError if it does not fit."""
        self._growing.load_state_dict(self._model.model, saved["optimizer"])
        self.executor.resume(saved["scales"], saved.get("last_adaptation"))
        self._refresh()

    def release_optimizer(self) -> None:
        """Remove the hooks from the user's optimiser; what has grown stays in it."""
        self._growing.close()

    def _publish(self, outcome: AdaptationOutcome) -> None:
        self._transport.publish(OUTCOMES, lambda: outcome)
        if self.on_outcome is not None:
            self.on_outcome(outcome)

    def _take(self, step: int) -> None:
        for record in self._transport.receive():
            self.executor.take(record, step)

    def _follow_model(self) -> None:
        """Train the kernels that the model has now: the user has loaded a state dict into it."""
        gone = set(self._model.trained)
        self._refresh()
        gone -= set(self._model.trained)
        self._growing.drop(gone)
        for layer in self._model.grown:
            for seed in layer.seeds:
                if seed.kernel is not None:
                    self.executor.train(layer, seed)

    def _refresh(self) -> None:
        """Take up what has grown or gone."""
        self._model.refresh()

    def _average(self, layer: KasminaLayer) -> None:
        """Average the gradients of a layer's kernels over the ranks, as soon as the layer has them."""
        assert self._replicas is not None
        for kernel in layer.kernels.values():
            self._replicas.average_gradients(kernel)

    def _keep_common(self, replicas: Replicas) -> None:
        """Drop the kernels that another rank could not load: the copies of the network must stay equal."""
        seeds = [(layer, seed) for layer in self._model.grown for seed in layer.seeds if seed.loaded]
        loaded = {seed.kernel_id: (layer, seed.index) for layer, seed in seeds}
        for kernel_id in loaded.keys() - replicas.common(loaded):
            layer, index = loaded[kernel_id]
            log.error("kernel %s is dropped: another rank could not load it", kernel_id)
            self._growing.drop(layer.drop(index).parameters())
            self._refresh()
