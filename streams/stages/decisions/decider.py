"""Make one decision: a function of the graph, the policy, the standing orders and the run's latest adaptations."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tamiyo.models.actions import to_action
from tamiyo.models.masks import MaskLimits, legal_actions
from tamiyo.models.safety import SafetyLimits, SafetyMonitor
from tamiyo.models.urgency import urgency
from tamiyo.schemas.adaptation import AdaptationDecision, DecisionType, Veto
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.identity import decision_id, kernel_id, sampling_seed
from tamiyo.schemas.record import Tensor
from tamiyo.streams.settings import DecisionSettings
from tamiyo.streams.stages.decisions.explanation import explain_decision
from tamiyo.streams.stages.decisions.history import History
from tamiyo.streams.stages.decisions.orders import StandingOrders
from tamiyo.streams.stages.decisions.policy_server import Served
from tamiyo.streams.stages.decisions.vetoes import blocking_vetoes


class Decider:
    """Samples an action among the legal ones, and has the safety monitor check it.

    What forbids any adaptation is masked before sampling, so the recorded probabilities are exact. What the monitor
    objects to in the sampled action is a veto, and no_op is executed instead.
    """

    def __init__(self, settings: DecisionSettings) -> None:
        """Take the limits from `settings`."""
        self._settings = settings
        self._masks = MaskLimits(cooldown_steps=settings.cooldown_steps)
        limits = SafetyLimits(
            max_decision_uncertainty=settings.max_decision_uncertainty,
            max_adaptations=settings.max_adaptations,
            rate_steps=settings.rate_steps,
            masks=self._masks,
        )
        self._monitor = SafetyMonitor(limits, protected=settings.protected_layers)

    def mask(
        self, graph: ModelGraph, kinds: Sequence[str], orders: StandingOrders, history: History
    ) -> npt.NDArray[np.bool_]:
        """Return which actions are legal at `graph`, bool [1 + nodes x kinds]; arguments as of `decide`."""
        return self._mask(graph, kinds, orders, history, paused=bool(self._blocking(graph, orders, history)))

    def _mask(
        self, graph: ModelGraph, kinds: Sequence[str], orders: StandingOrders, history: History, *, paused: bool
    ) -> npt.NDArray[np.bool_]:
        return legal_actions(
            graph,
            kinds,
            limits=self._masks,
            paused=paused,
            protected=self._protected(orders),
            steps_since_decision=history.steps_since(graph),
        )

    def _blocking(self, graph: ModelGraph, orders: StandingOrders, history: History) -> list[Veto]:
        return blocking_vetoes(graph, orders, history, self._settings, self._masks)

    def _protected(self, orders: StandingOrders) -> frozenset[str]:
        return orders.protected | frozenset(self._settings.protected_layers)

    def decide(self, graph: ModelGraph, served: Served, orders: StandingOrders, history: History) -> AdaptationDecision:
        """Return the decision for `graph`.

        Args:
            graph: The graph, of the feature catalogue that the policy reads.
            served: The policy, and the version it is served under.
            orders: The standing orders for the graph's run.
            history: The run's latest adaptations.

        Raises:
            PolicyError: If the policy cannot read the graph or its results are not finite.
        """
        blocking = self._blocking(graph, orders, history)
        name = decision_id(graph.graph_id)
        seed = sampling_seed(name)
        kinds = served.kinds
        mask = self._mask(graph, kinds, orders, history, paused=bool(blocking))
        choice = served.choose(graph, mask, seed=seed)
        action = to_action(choice.index, graph.layer_id, kinds)
        confidence = 1.0 - choice.uncertainty
        vetoes = self._monitor.validate(
            action,
            confidence,
            graph,
            paused=bool(blocking),
            protected=self._protected(orders),
            steps_since_decision=history.steps_since(graph),
            recent_adaptations=history.recent(graph, self._settings.rate_steps),
        )
        executed = to_action(0, graph.layer_id, kinds) if vetoes else action
        load = executed.type == DecisionType.LOAD_KERNEL and not orders.dry_run
        return AdaptationDecision(
            run_id=graph.run_id,
            decision_id=name,
            graph_id=graph.graph_id,
            step=graph.step,
            time_ms=graph.time_ms,
            type=executed.type,
            layer_id=executed.layer_id,
            blueprint=executed.blueprint,
            kernel_id=kernel_id(name) if load else None,
            proposed=action,
            vetoes=[*blocking, *vetoes],
            dry_run=orders.dry_run,
            orders=dict(orders.given_ms),
            confidence=confidence,
            uncertainty=choice.uncertainty,
            urgency=urgency(graph, action.layer_id),
            predicted_reward=choice.predicted_reward,
            value=choice.value,
            method=choice.method,
            policy_version=served.version,
            seed=seed,
            temperature=choice.temperature,
            layers=graph.layer_id,
            kinds=list(kinds),
            action_index=choice.index,
            mask=mask.astype(np.uint8).tobytes(),
            probabilities=Tensor.of(choice.probabilities),
            log_probability=choice.log_probability,
            entropy=choice.entropy,
            explanation=explain_decision(
                action,
                graph,
                choice,
                legal_actions=int(mask.sum()),
                policy_version=served.version,
                vetoes=vetoes,
                blocking_vetoes=blocking,
                dry_run=orders.dry_run,
            ),
        )
