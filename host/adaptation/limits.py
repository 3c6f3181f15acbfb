"""The host's own limits: what it lets nobody do to its network, whatever was decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from tamiyo.host.blueprints import CATALOGUE
from tamiyo.host.common.settings import HostSettings
from tamiyo.host.layers.kasmina_layer import KasminaLayer
from tamiyo.host.layers.seed import Seed, SeedState
from tamiyo.schemas.adaptation import ALL_RUNS, AdaptationDecision, ControlCommand, DecisionType
from tamiyo.schemas.errors import AdaptationRefused


class Limits:
    """Checks a decision against settings, standing orders and the state of the network as it is now."""

    def __init__(
        self,
        layers: Mapping[str, KasminaLayer],
        settings: HostSettings,
        *,
        parameter_budget: int,
        protected: Collection[str],
        blueprints: Mapping[str, Collection[str]],
    ) -> None:
        """`blueprints`: by layer, the names on offer there."""
        self._layers = layers
        self._settings = settings
        self.parameter_budget = parameter_budget
        self._protected = frozenset(protected)
        self._blueprints = blueprints
        self._orders: dict[str, ControlCommand] = {}

    def order(self, command: ControlCommand) -> None:
        """Take an operator's order; the newest one for this run, and for all runs, stand together."""
        key = ALL_RUNS if command.run_id == ALL_RUNS else "run"
        standing = self._orders.get(key)
        if standing is None or command.time_ms >= standing.time_ms:
            self._orders[key] = command

    def check(
        self,
        decision: AdaptationDecision,
        *,
        scale: float = 1.0,
        steps_since: int | None,
        parameters: int | None = None,
    ) -> None:
        """Raise AdaptationRefused, naming the limit, unless `decision` may be executed now.

        scale: the layer's learning rate scale. steps_since: steps since the last adaptation, None before the first.
        parameters: what the kernel to load really takes, once it is known; until then the blueprint's own estimate.
        """
        layer = self._check_target(decision)
        if decision.dry_run or any(order.dry_run for order in self._orders.values()):
            raise AdaptationRefused("dry_run", "decisions are recorded only")
        if any(order.paused for order in self._orders.values()):
            raise AdaptationRefused("paused", "an operator has paused adaptations")
        cooldown = self._settings.cooldown_steps
        if steps_since is not None and steps_since < cooldown:
            raise AdaptationRefused("cooldown", f"{steps_since} steps since the last adaptation, of {cooldown} wanted")
        if decision.type == DecisionType.LOAD_KERNEL:
            self._check_load(decision, layer, parameters)
        elif decision.type == DecisionType.UNLOAD_KERNEL:
            _require(layer, "nothing_to_unload", lambda s: s.loaded and not (s.permanent or s.unloading))
        elif decision.type == DecisionType.FOSSILIZE_KERNEL:
            _require(layer, "nothing_to_fossilize", lambda s: s.state is SeedState.ACTIVE and not s.unloading)
        elif scale * self._settings.learning_rate_factor < self._settings.learning_rate_floor:
            raise AdaptationRefused(
                "learning_rate_floor",
                f"layer {layer.layer_id} learns at {scale:g} of its rate, the floor is "
                f"{self._settings.learning_rate_floor:g}",
            )

    def _check_target(self, decision: AdaptationDecision) -> KasminaLayer:
        kinds = [kind.value for kind in DecisionType if kind is not DecisionType.NO_OP]
        if decision.type not in kinds:
            raise AdaptationRefused("unknown_type", f"{decision.type} is none of {', '.join(kinds)}")
        layer_id = decision.layer_id or ""
        # A protected name is protected whether or not there is such a layer.
        if layer_id in self._protected or any(layer_id in order.protected_layers for order in self._orders.values()):
            raise AdaptationRefused("protected_layer", f"layer {layer_id} must not be adapted")
        layer = self._layers.get(layer_id)
        if layer is None:
            raise AdaptationRefused("unknown_layer", f"there is no layer {layer_id!r} that can carry kernels")
        return layer

    def _check_load(self, decision: AdaptationDecision, layer: KasminaLayer, parameters: int | None) -> None:
        name = decision.blueprint or ""
        if name not in self._blueprints.get(layer.layer_id, ()):
            raise AdaptationRefused("unknown_blueprint", f"{name!r} is not on offer at layer {layer.layer_id}")
        if decision.kernel_id is None:
            raise AdaptationRefused("no_kernel_id", "a load_kernel decision names the kernel that is to be loaded")
        _require(layer, "no_dormant_seed", lambda s: s.state is SeedState.DORMANT)
        loaded = sum(seed.loaded for each in self._layers.values() for seed in each.seeds)
        most = self._settings.max_kernels
        if most is not None and loaded >= most:
            raise AdaptationRefused("max_kernels", f"{loaded} kernels are loaded, of {most} allowed")
        used = sum(each.kernel_parameters for each in self._layers.values())
        added = CATALOGUE[name].parameters(layer.spec) if parameters is None else parameters
        if used + added > self.parameter_budget:
            raise AdaptationRefused(
                "parameter_budget",
                f"{added} parameters more than the {used} grown so far pass the budget of {self.parameter_budget}",
            )


def _require(layer: KasminaLayer, limit: str, holds: Callable[[Seed], bool]) -> None:
    if not any(holds(seed) for seed in layer.seeds):
        states = ", ".join(seed.state.value for seed in layer.seeds)
        raise AdaptationRefused(limit, f"the seeds of layer {layer.layer_id} are {states}")
