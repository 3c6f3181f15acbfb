"""A gymnasium environment over real training runs: an episode is a run, a step is a decision on one of its graphs."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from tamiyo.evaluation.lab.baselines import Never, certain
from tamiyo.evaluation.lab.run import Run, RunSpec
from tamiyo.evaluation.lab.truth import costs, objective
from tamiyo.models.actions import size, to_action
from tamiyo.models.features import EDGE_FEATURES, GLOBAL_FEATURES, NODE_FEATURES
from tamiyo.schemas.analysis import ModelGraph
from tamiyo.schemas.errors import ConfigurationError

Observation = dict[str, npt.NDArray[Any]]

SEEDS = 2**31 - 1
"""Seeds of runs lie below this."""


class TamiyoEnv(gymnasium.Env[Observation, np.int64]):
    """Adapt a network while it trains.

    One episode is one training run, from its first graph to its end. Rewards are in nats and add up: their sum is the
    run's objective at its end, minus the log of the early-stopped test loss at equal compute, less the objective at the
    first decision and the costs of the adaptations (`streams/stages/rewards/worth.py`).

    An illegal action counts as no_op, and `info["illegal_action"]` is True. `info["action_mask"]` and the observation
    have the legal ones; `action_space.sample(mask=...)` takes the mask as it is. Episodes end as `terminated`: a run
    has as many steps as it was planned for, and the observation has its progress.

    Args:
        task: Training task, as listed by `tamiyo lab tasks`.
        steps: Optimiser steps of a run; 0: as many as the task recommends.
        max_layers: Rows of the node features; a larger network is refused.
        max_edges: Rows of the edge features.
        settings: As of `Run`.

    Example:
        >>> env = gymnasium.make("tamiyo.evaluation.lab.env:Tamiyo-v0", task="digits", steps=100)
        >>> observation, info = env.reset(seed=0)
        >>> action = env.action_space.sample(mask=info["action_mask"])
        >>> observation, reward, terminated, truncated, info = env.step(action)
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        task: str = "digits",
        *,
        steps: int = 0,
        max_layers: int = 16,
        max_edges: int = 64,
        settings: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        if steps < 0 or max_layers < 1 or max_edges < 1:
            raise ConfigurationError(
                f"expected steps of at least 0, and max_layers and max_edges of at least 1, got steps={steps}, "
                f"max_layers={max_layers}, max_edges={max_edges}"
            )
        self.task = task
        self.steps = steps
        self._settings = settings
        self._policy = Never()  # decides nothing: it names the kinds of action
        self._nodes, self._edges = max_layers, max_edges
        self._run: Run | None = None
        self._graph: ModelGraph | None = None
        self._mask = np.zeros(0, np.bool_)
        self._value = math.nan
        actions = size(max_layers, self._policy.kinds)
        self.action_space = spaces.Discrete(actions)  # type: ignore[assignment]
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {
                "node_features": _real(max_layers, len(NODE_FEATURES)),
                "nodes": spaces.MultiBinary(max_layers),
                "edge_features": _real(max_edges, len(EDGE_FEATURES)),
                "edge_index": spaces.Box(-1, max_layers - 1, (2, max_edges), np.int64),
                "global_features": _real(len(GLOBAL_FEATURES)),
                "action_mask": spaces.MultiBinary(actions),
            }
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of action at one layer: action 1 + layer * len(kinds) + kind."""
        return self._policy.kinds

    @property
    def run(self) -> Run:
        """The run of this episode."""
        if self._run is None:
            raise gymnasium.error.ResetNeeded("call reset() before the first step")
        return self._run

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin another run, and train it to its first graph.

        Args:
            seed: Of the environment's random generator, which draws the seeds of this and the following runs.
            options: `run_seed` gives the seed of this run itself, to compare policies on the same runs; `data_seed`
                another order of its data.

        Raises:
            ConfigurationError: An unknown option, a run without decisions, or a network larger than the observation.
            DatasetError: The task is unknown.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(SEEDS))
        chosen = dict(options or {})
        run_seed, data_seed = chosen.pop("run_seed", drawn), chosen.pop("data_seed", None)
        if chosen:
            raise ConfigurationError(f"unknown options {', '.join(map(str, chosen))}: use run_seed and data_seed")
        self.close()
        spec = RunSpec(self.task, int(run_seed), self.steps, None if data_seed is None else int(data_seed))
        self._run = Run(spec, self._policy, settings=self._settings).__enter__()
        self._graph = None
        self._advance()
        if self._run.ended:
            raise ConfigurationError(
                f"a run of {spec.planned} steps ends before its first decision: give it 200 or more"
            )
        self._value = self._worth()
        return self._observation(), self._info(illegal=False)

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take an action at the graph, and train to the next.

        Args:
            action: An index of the action list; an illegal one counts as no_op.

        Returns:
            Observation, reward in nats, terminated, truncated (always False), and info.

        Raises:
            gymnasium.error.InvalidAction: The action is not in the action space.
            gymnasium.error.ResetNeeded: The episode has ended, or none has begun.
        """
        if not self.action_space.contains(action):
            raise gymnasium.error.InvalidAction(f"expected an action below {self.action_space.n}, got {action!r}")  # type: ignore[attr-defined]
        run = self.run
        if run.ended:
            raise gymnasium.error.ResetNeeded("the run has ended: call reset()")
        index = int(action)
        legal = index < len(self._mask) and bool(self._mask[index])
        run.decide(certain(index if legal else 0, self._mask))
        self._advance()
        before, self._value = self._value, self._worth()
        reward = 0.0 if math.isnan(before) else self._value - before
        return self._observation(), reward, run.ended, False, self._info(illegal=not legal)

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.__exit__(None, None, None)
            self._run = None

    def _advance(self) -> None:
        """Train to the next graph; after the last step, decide on what is left, which nobody executes."""
        run = self.run
        while (graph := run.advance()) is not None:
            self._graph, self._mask = graph, run.pipeline.mask(graph)
            if not run.ended:
                return
            run.decide()
        self._mask = np.arange(len(self._mask)) == 0

    def _worth(self) -> float:
        """Return the objective less the costs so far, nats; NaN before the first validation."""
        result = self.run.result()
        return objective(result) - costs(result)

    def _observation(self) -> Observation:
        graph = self._graph
        assert graph is not None
        layers, edges = len(graph.layer_id), len(graph.edge_source)
        if layers > self._nodes or edges > self._edges:
            raise ConfigurationError(
                f"the network of {self.task} has {layers} layers and {edges} edges: max_layers={self._nodes} and "
                f"max_edges={self._edges} are too few"
            )
        space = self.observation_space
        found = {name: np.zeros(part.shape, part.dtype) for name, part in space.spaces.items()}  # type: ignore[attr-defined]
        found["node_features"][:layers] = graph.node_features.numpy()
        found["nodes"][:layers] = 1
        found["edge_features"][:edges] = graph.edge_features.numpy()
        found["edge_index"][:] = -1
        found["edge_index"][:, :edges] = [graph.edge_source, graph.edge_target]
        found["global_features"][:] = graph.global_features.numpy()
        found["action_mask"] = self._legal()
        return found

    def _legal(self) -> npt.NDArray[np.int8]:
        found = np.zeros(self.action_space.n, np.int8)  # type: ignore[attr-defined]
        found[: len(self._mask)] = self._mask
        return found

    def _info(self, *, illegal: bool) -> dict[str, Any]:
        run = self.run
        return {
            "action_mask": self._legal(),
            "illegal_action": illegal,
            "run_seed": run.spec.seed,
            "training_step": run.step,
            "layers": list(self._graph.layer_id) if self._graph is not None else [],
            "adaptations": len(run.adaptations),
            "worth": self._value,
        }

    def describe(self, action: int) -> str:
        """Return an action at the current graph in words, such as `load_kernel:low_rank at conv1`."""
        graph = self._graph
        if graph is None:
            raise gymnasium.error.ResetNeeded("call reset() first: actions depend on the network")
        if not 0 <= action < size(len(graph.layer_id), self.kinds):
            return "no such layer"
        found = to_action(action, graph.layer_id, self.kinds)
        kind = f"{found.type}:{found.blueprint}" if found.blueprint else str(found.type)
        return f"{kind} at {found.layer_id}" if found.layer_id else kind


def _real(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


gymnasium.register("Tamiyo-v0", entry_point="tamiyo.evaluation.lab.env:TamiyoEnv")
