"""Adaptations of an attached model: decisions in, a changed network and outcomes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from tamiyo.host.adaptation.executor import Executor
from tamiyo.host.adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host.adaptation.limits import Limits
from tamiyo.host.blueprints import for_layer
from tamiyo.host.client.transport import Transport
from tamiyo.host.common.settings import HostSettings
from tamiyo.host.kernels.cache import KernelCache
from tamiyo.host.layers.attached_model import AttachedModel
from tamiyo.host.probes.counterfactual import HeldOutBatch
from tamiyo.host.probes.shadow_twin import ShadowTwin
from tamiyo.schemas.adaptation import AdaptationOutcome
from tamiyo.schemas.topics import OUTCOMES

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
    ) -> None:
        """Build the executor and its limits."""
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
        )

    def advance(self, step: int) -> None:
        """Move the grown layers on to `step`, then execute what has arrived and is ready."""
        for layer in self._model.grown:
            for dropped in layer.advance(step):
                self._growing.drop(dropped.kernel.parameters())
                self._model.refresh()
        arrived = self._transport.receive()
        for record in arrived:
            self.executor.take(record, step)
        if (arrived or self.executor.open) and self.executor.run(step):
            self._model.refresh()

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
        """Return the optimiser's state by parameter name, and the learning rate scale of every slowed layer."""
        return {"optimizer": self._growing.state_dict(self._model.model), "scales": self.executor.scales()}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from `state_dict`, after the model has loaded its own. Raises KernelError if it does not fit."""
        self._growing.load_state_dict(self._model.model, saved["optimizer"])
        self.executor.resume(saved["scales"])
        self._model.refresh()

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
