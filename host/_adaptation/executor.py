"""Execute decisions between two steps, each once, and publish the outcome of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tamiyo.host._adaptation.growing_optimizer import GrowingOptimizer
from tamiyo.host._adaptation.limits import Limits
from tamiyo.host._client.transport import InboundRecord
from tamiyo.host._common import clock
from tamiyo.host._common.settings import HostSettings
from tamiyo.host._kernels.cache import KernelCache
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import Seed
from tamiyo.host._probes.counterfactual import HeldOutBatch, latency_ms
from tamiyo.host._probes.shadow_twin import ShadowTwin
from tamiyo.schemas.adaptation import (
    AdaptationDecision,
    AdaptationOutcome,
    CompiledKernel,
    ControlCommand,
    DecisionType,
    KernelStatus,
    OutcomeStatus,
)
from tamiyo.schemas.errors import AdaptationRefused, TamiyoError
from tamiyo.schemas.identity import outcome_id

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Number of decisions by result; `repeated` counts decisions received again."""

    decisions: int = 0
    repeated: int = 0
    executed: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def resolved(self) -> int:
        """Number of decisions that have an outcome."""
        return self.executed + self.refused + self.failed


@dataclass(frozen=True, slots=True)
class _Pending:
    decision: AdaptationDecision
    deadline: float


class Executor:
    """Takes decisions, kernels and control commands as they arrive, and executes the decisions that are ready.

    A decision is identified by its id; one received again is ignored. `no_op`, which includes every vetoed decision,
    changes nothing and has no outcome.
    """

    def __init__(
        self,
        run_id: str,
        layers: Mapping[str, KasminaLayer],
        *,
        growing: GrowingOptimizer,
        cache: KernelCache,
        limits: Limits,
        settings: HostSettings,
        held_out: HeldOutBatch | None,
        publish: Callable[[AdaptationOutcome], None],
        twin: ShadowTwin | None = None,
        clock: Callable[[], float] = clock.seconds,
        obstacle: Callable[[KasminaLayer], str] = lambda _: "",
    ) -> None:
        """Start without any decision.

        Args:
            run_id: The run, for the outcomes.
            layers: The wrapped layers by layer_id.
            growing: The optimiser that kernels join and leave.
            cache: Where kernels are loaded from.
            limits: What the host allows.
            settings: Timeouts and the learning rate factor.
            held_out: Measures the loss before and after an adaptation; None: the loss is left out.
            publish: Called with the outcome of every decision except `no_op`.
            twin: Measures what executed adaptations gain; None: nothing does.
            clock: Seconds, monotonic.
            obstacle: Returns why a layer cannot grow since the user has changed the model; empty if it can.
        """
        self.counts = Counts()
        self.last_step: int | None = None
        """Step of the last executed adaptation; None before the first."""
        self.latest_decision_step: int | None = None
        """Highest step that a decision was about; None before the first."""
        self._run_id = run_id
        self._layers = layers
        self._growing = growing
        self._cache = cache
        self._limits = limits
        self._settings = settings
        self._held_out = held_out
        self._publish = publish
        self._twin = twin
        self._clock = clock
        self._obstacle = obstacle
        self._seen: set[str] = set()
        self._pending: dict[str, _Pending] = {}
        self._kernels: dict[str, CompiledKernel] = {}
        self._scales: dict[str, float] = {}
        self._lookups: dict[str, tuple[int, int]] = {}
        self._batch = 1
        self._ended = False

    @property
    def open(self) -> int:
        """Number of decisions without an outcome yet."""
        return len(self._pending)

    def scale(self, layer_id: str) -> float:
        """Return a layer's learning rate as a share of the optimiser's, in (0, 1]."""
        return self._scales.get(layer_id, 1.0)

    def scales(self) -> dict[str, float]:
        """Return the learning rate scale of every layer that was slowed down."""
        return dict(self._scales)

    def resume(self, scales: Mapping[str, float], last_step: int | None) -> None:
        """Restore what an earlier process, or an earlier step of this one, had done.

        Args:
            scales: Learning rate scales by layer_id; the optimiser restores the rates themselves.
            last_step: Step of the last executed adaptation: the cooldown goes on from there.
        """
        self._scales = dict(scales)
        self.last_step = last_step
        self.latest_decision_step = None

    def hit_rate(self, layer_id: str) -> float:
        """Return the share of a layer's kernel loads that the cache held already; 1 before the first load."""
        hits, lookups = self._lookups.get(layer_id, (0, 0))
        return hits / lookups if lookups else 1.0

    def steps_since(self, step: int) -> int | None:
        """Return the steps since the last executed adaptation; None before the first."""
        return None if self.last_step is None else step - self.last_step

    def record_batch(self, batch: int) -> None:
        """Record the size of a training batch: latencies before and after an adaptation are measured with it."""
        self._batch = max(1, batch)

    def take(self, record: InboundRecord, step: int) -> None:
        """Take one record; a decision that the limits forbid is refused at once."""
        if isinstance(record, ControlCommand):
            self._limits.take_command(record)
        elif isinstance(record, CompiledKernel):
            self._kernels[record.kernel_id] = record
        else:
            self._decide(record, step)

    def run(self, step: int) -> bool:
        """Execute the ready decisions, fail those whose kernel is overdue; return whether the network changed."""
        changed = False
        for pending in list(self._pending.values()):
            decision = pending.decision
            kernel = self._kernels.get(decision.kernel_id or "")
            if decision.type != DecisionType.LOAD_KERNEL or kernel is not None:
                del self._pending[decision.decision_id]
                changed |= self._execute(decision, kernel, step)
            elif self._clock() >= pending.deadline:
                del self._pending[decision.decision_id]
                waited = self._settings.compile_timeout_s
                self._publish_outcome(
                    decision, step, OutcomeStatus.FAILED, f"no_kernel: no kernel arrived within {waited:g} s"
                )
        return changed

    def end(self, step: int) -> None:
        """End the run at `step`: refuse the open decisions, and every further one."""
        self._ended = True
        for pending in list(self._pending.values()):
            self._refuse_ended(pending.decision, step)
        self._pending.clear()

    def _decide(self, decision: AdaptationDecision, step: int) -> None:
        if decision.decision_id in self._seen:
            self.counts.repeated += 1
            return
        self._seen.add(decision.decision_id)
        self.counts.decisions += 1
        self.latest_decision_step = max(self.latest_decision_step or 0, decision.step)
        if decision.type == DecisionType.NO_OP:
            return
        if self._ended:
            self._refuse_ended(decision, step)
        elif self._allowed(decision, step):
            deadline = self._clock() + self._settings.compile_timeout_s
            self._pending[decision.decision_id] = _Pending(decision, deadline)

    def _refuse_ended(self, decision: AdaptationDecision, step: int) -> None:
        self._publish_outcome(
            decision, step, OutcomeStatus.REFUSED, "run_ended: the training ended before it could be executed"
        )

    def _allowed(self, decision: AdaptationDecision, step: int, parameters: int | None = None) -> bool:
        """Return whether the limits allow the decision; if not, refuse it."""
        try:
            self._limits.check(
                decision,
                scale=self.scale(decision.layer_id or ""),
                steps_since=self.steps_since(step),
                parameters=parameters,
            )
        except AdaptationRefused as refusal:
            self._publish_outcome(decision, step, OutcomeStatus.REFUSED, f"{refusal.limit}: {refusal}")
            return False
        return True

    def _execute(self, decision: AdaptationDecision, kernel: CompiledKernel | None, step: int) -> bool:
        # Check again: the network and the control commands may have changed while the kernel was compiled.
        if not self._allowed(decision, step):
            return False
        layer = self._layers[decision.layer_id or ""]
        started = clock.seconds()
        before = self._measure(layer)
        if self._twin is not None:
            self._twin.begin(decision, step)
        try:
            kernel_id = self._adapt(decision, kernel, layer, step)
        except AdaptationRefused as refusal:
            self._cancel_twin()
            self._publish_outcome(decision, step, OutcomeStatus.REFUSED, f"{refusal.limit}: {refusal}", before=before)
            return False
        except Exception as error:  # training comes first: no kernel and no optimiser may end it
            self._cancel_twin()
            log.warning(
                "decision %s failed: %s", decision.decision_id, error, exc_info=not isinstance(error, TamiyoError)
            )
            reason = f"{type(error).__name__}: {error}"
            self._publish_outcome(decision, step, OutcomeStatus.FAILED, reason, before=before)
            return False
        self.last_step = step
        self._publish_outcome(
            decision,
            step,
            OutcomeStatus.EXECUTED,
            before=before,
            after=self._measure(layer),
            kernel_id=kernel_id,
            started=started,
        )
        return True

    def _cancel_twin(self) -> None:
        if self._twin is not None:
            self._twin.cancel("the adaptation was not executed")

    def _adapt(
        self, decision: AdaptationDecision, kernel: CompiledKernel | None, layer: KasminaLayer, step: int
    ) -> str | None:
        """Change the network; return the id of the kernel concerned, if there is one."""
        match decision.type:
            case DecisionType.LOAD_KERNEL:
                assert kernel is not None
                return self._load(decision, kernel, layer, step)
            case DecisionType.UNLOAD_KERNEL:
                return layer.seeds[layer.unload()].kernel_id
            case DecisionType.FOSSILIZE_KERNEL:
                return layer.seeds[layer.fossilize()].kernel_id
        parameters = [*layer.own_parameters(), *layer.kernels.parameters()]
        factor = self._settings.learning_rate_factor
        self._growing.scale_learning_rate(parameters, factor)
        self._scales[layer.layer_id] = self.scale(layer.layer_id) * factor
        return None

    def _load(self, decision: AdaptationDecision, compiled: CompiledKernel, layer: KasminaLayer, step: int) -> str:
        if compiled.status is KernelStatus.REFUSED:
            raise AdaptationRefused("not_compiled", compiled.reason or "the kernels stage reported no reason")
        if (compiled.layer_id, compiled.blueprint) != (decision.layer_id, decision.blueprint):
            raise AdaptationRefused(
                "wrong_kernel",
                f"expected {decision.blueprint} for {decision.layer_id}, got {compiled.blueprint} for "
                f"{compiled.layer_id}",
            )
        misses = self._cache.stats().misses
        kernel, metadata = self._cache.get(compiled.kernel_id, compiled.checksum, layer=layer.spec)
        hits, lookups = self._lookups.get(layer.layer_id, (0, 0))
        self._lookups[layer.layer_id] = (hits + (self._cache.stats().misses == misses), lookups + 1)
        if metadata.blueprint != decision.blueprint:
            raise AdaptationRefused(
                "wrong_kernel", f"expected {decision.blueprint}, the stored kernel is {metadata.blueprint}"
            )
        self._limits.check(decision, steps_since=self.steps_since(step), parameters=kernel.parameter_count)
        obstacle = self._obstacle(layer)
        if obstacle:
            raise AdaptationRefused("model_changed", obstacle)
        refusal = self._growing.refusal(layer.own_parameters())
        if refusal is not None:
            raise refusal
        index = layer.load_kernel(kernel, kernel_id=compiled.kernel_id, blueprint=metadata.blueprint, step=step)
        self.train(layer, layer.seeds[index])
        return compiled.kernel_id

    def train(self, layer: KasminaLayer, seed: Seed) -> None:
        """Let the optimiser train a seed's kernel at the learning rate of its layer; one it trains already stays."""
        assert seed.kernel is not None
        name = f"{layer.layer_id}.kernels.{seed.index}"
        fresh = [p for p in seed.kernel.parameters() if not self._growing.trains(p)]
        self._growing.add(seed.kernel, beside=layer.own_parameters(), name=name)
        scale = self.scale(layer.layer_id)
        if scale < 1.0:
            self._growing.scale_learning_rate(fresh, scale)

    def _measure(self, layer: KasminaLayer) -> dict[str, float]:
        """Return loss (nats, if there is a held-out batch), latency_ms (of the layer), parameters (of all layers)."""
        measured = {
            "parameters": float(sum(each.base_parameters + each.kernel_parameters for each in self._layers.values())),
            "kernel_parameters": float(sum(each.kernel_parameters for each in self._layers.values())),
        }
        try:
            measured["latency_ms"] = latency_ms(layer, self._batch)
        except Exception as error:  # it is a number for the record, no reason to fail
            log.info("the latency of layer %s is not measured: %s", layer.layer_id, error)
        loss = None if self._held_out is None else self._held_out.loss()
        return measured if loss is None else {"loss": loss, **measured}

    def _publish_outcome(
        self,
        decision: AdaptationDecision,
        step: int,
        status: OutcomeStatus,
        reason: str = "",
        *,
        before: Mapping[str, float] | None = None,
        after: Mapping[str, float] | None = None,
        kernel_id: str | None = None,
        started: float | None = None,
    ) -> None:
        setattr(self.counts, status.value, getattr(self.counts, status.value) + 1)
        duration_ms = 0.0 if started is None else (clock.seconds() - started) * 1e3
        log.info("decision %s: %s %s", decision.decision_id, status.value, reason)
        self._publish(
            AdaptationOutcome(
                run_id=self._run_id,
                outcome_id=outcome_id(decision.decision_id),
                decision_id=decision.decision_id,
                step=step,
                time_ms=clock.time_ms(),
                type=decision.type,
                layer_id=decision.layer_id,
                blueprint=decision.blueprint,
                kernel_id=kernel_id or decision.kernel_id,
                status=status,
                reason=reason[:2000],
                before=dict(before or {}),
                after=dict(after or {}),
                duration_ms=duration_ms,
            )
        )
