"""The host's own limits, checked before every adaptation, whatever was decided elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from tamiyo.host._common.settings import HostSettings
from tamiyo.host._layers.kasmina_layer import KasminaLayer
from tamiyo.host._layers.seed import Seed, SeedState
from tamiyo.host.blueprints import CATALOGUE
from tamiyo.schemas.adaptation import ALL_RUNS, AdaptationDecision, ControlCommand, DecisionType
from tamiyo.schemas.errors import AdaptationRefused


class Limits:
    """Checks a decision against the settings, the control commands in force and the current state of the network."""

    def __init__(
        self,
        layers: Mapping[str, KasminaLayer],
        settings: HostSettings,
        *,
        parameter_budget: int,
        protected: Collection[str],
        blueprints: Mapping[str, Collection[str]],
    ) -> None:
        """Start without control commands.

        Args:
            layers: The wrapped layers by layer_id.
            settings: Cooldown, number of kernels, learning rate floor.
            parameter_budget: Parameters that all kernels together may have.
            protected: Names of layers that must not be adapted.
            blueprints: By layer_id, the names of the blueprints that support the layer.
        """
        self._layers = layers
        self._settings = settings
        self.parameter_budget = parameter_budget
        self._protected = frozenset(protected)
        self._blueprints = blueprints
        self._commands: dict[str, ControlCommand] = {}

    def take_command(self, command: ControlCommand) -> None:
        """Put a control command in force; the newest for this run and the newest for all runs apply together."""
        key = ALL_RUNS if command.run_id == ALL_RUNS else "run"
        current = self._commands.get(key)
        if current is None or command.time_ms >= current.time_ms:
            self._commands[key] = command

    def check(
        self,
        decision: AdaptationDecision,
        *,
        scale: float = 1.0,
        steps_since: int | None,
        parameters: int | None = None,
    ) -> None:
        """Return if `decision` may be executed now.

        Args:
            decision: What is to be executed.
            scale: The layer's learning rate scale, in (0, 1].
            steps_since: Steps since the last executed adaptation; None before the first.
            parameters: Size of the kernel to load, once it is known; None: as the blueprint computes it.

        Raises:
            AdaptationRefused: A limit forbids it; the error carries the limit's name.
        """
        layer = self._check_target(decision)
        if decision.dry_run or any(command.dry_run for command in self._commands.values()):
            raise AdaptationRefused("dry_run", "decisions are recorded and not executed")
        if any(command.paused for command in self._commands.values()):
            raise AdaptationRefused("paused", "an operator has paused adaptations")
        cooldown = self._settings.cooldown_steps
        if steps_since is not None and steps_since < cooldown:
            raise AdaptationRefused("cooldown", f"{steps_since} steps since the last adaptation, {cooldown} required")
        if decision.type == DecisionType.LOAD_KERNEL:
            self._check_load(decision, layer, parameters)
        elif decision.type == DecisionType.UNLOAD_KERNEL:
            _require(layer, "nothing_to_unload", lambda s: s.loaded and not (s.permanent or s.unloading))
        elif decision.type == DecisionType.FOSSILIZE_KERNEL:
            _require(layer, "nothing_to_fossilize", lambda s: s.state is SeedState.ACTIVE and not s.unloading)
        elif scale * self._settings.learning_rate_factor < self._settings.learning_rate_floor:
            raise AdaptationRefused(
                "learning_rate_floor",
                f"layer {layer.layer_id} has learning rate scale {scale:g}; the next would be below the floor of "
                f"{self._settings.learning_rate_floor:g}",
            )

    def _check_target(self, decision: AdaptationDecision) -> KasminaLayer:
        kinds = [kind.value for kind in DecisionType if kind is not DecisionType.NO_OP]
        if decision.type not in kinds:
            raise AdaptationRefused("unknown_type", f"expected one of {', '.join(kinds)}, got {decision.type}")
        layer_id = decision.layer_id or ""
        # First, so that a protected name is refused as such even if there is no such layer.
        if layer_id in self._protected or any(layer_id in each.protected_layers for each in self._commands.values()):
            raise AdaptationRefused("protected_layer", f"layer {layer_id} is protected")
        layer = self._layers.get(layer_id)
        if layer is None:
            raise AdaptationRefused("unknown_layer", f"there is no layer {layer_id!r} that can carry kernels")
        return layer

    def _check_load(self, decision: AdaptationDecision, layer: KasminaLayer, parameters: int | None) -> None:
        name = decision.blueprint or ""
        if name not in self._blueprints.get(layer.layer_id, ()):
            raise AdaptationRefused("unknown_blueprint", f"{name!r} does not support layer {layer.layer_id}")
        if decision.kernel_id is None:
            raise AdaptationRefused("no_kernel_id", "a load_kernel decision must name its kernel")
        _require(layer, "no_dormant_seed", lambda s: s.state is SeedState.DORMANT)
        loaded = sum(seed.loaded for each in self._layers.values() for seed in each.seeds)
        most = self._settings.max_kernels
        if most is not None and loaded >= most:
            raise AdaptationRefused("max_kernels", f"{loaded} kernels are loaded, at most {most} are allowed")
        used = sum(each.kernel_parameters for each in self._layers.values())
        added = CATALOGUE[name].parameters(layer.spec) if parameters is None else parameters
        if used + added > self.parameter_budget:
            raise AdaptationRefused(
                "parameter_budget",
                f"{added} parameters, with the {used} grown so far, exceed the budget of {self.parameter_budget}",
            )


def _require(layer: KasminaLayer, limit: str, suits: Callable[[Seed], bool]) -> None:
    """Raise AdaptationRefused unless a seed of the layer suits."""
    if not any(suits(seed) for seed in layer.seeds):
        states = ", ".join(seed.state.value for seed in layer.seeds)
        raise AdaptationRefused(limit, f"the seeds of layer {layer.layer_id} are {states}")
