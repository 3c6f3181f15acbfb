"""The gymnasium environment over real training runs."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tamiyo.evaluation.lab.env import TamiyoEnv
from tamiyo.evaluation.lab.run import RunResult
from tamiyo.evaluation.lab.truth import costs, objective
from tamiyo.host._common import clock
from tamiyo.schemas.adaptation import DecisionType
from tamiyo.schemas.errors import ConfigurationError, DatasetError
from tests.evaluation.lab.support import RunSpec, executed, finished

STEPS = 200
NAME = "tamiyo.evaluation.lab.env:Tamiyo-v0"


@pytest.fixture
def env() -> Iterator[TamiyoEnv]:
    """Return a short environment that is closed after the test."""
    made = TamiyoEnv("digits", steps=STEPS)
    yield made
    made.close()


def loads(env: TamiyoEnv, info: dict[str, Any]) -> list[int]:
    """Return the legal loads."""
    legal = map(int, np.flatnonzero(info["action_mask"]))
    return [action for action in legal if env.describe(action).startswith(DecisionType.LOAD_KERNEL)]


def episode(env: TamiyoEnv, seed: int, *, load: bool = True) -> tuple[list[float], list[dict[str, Any]], RunResult]:
    """Play one episode that loads the first legal kernel whenever there is one; return rewards, infos and the run."""
    _, info = env.reset(seed=seed)
    rewards, infos, terminated = [], [info], False
    while not terminated:
        found = loads(env, info) if load else []
        _, reward, terminated, truncated, info = env.step(found[0] if found else 0)
        assert not truncated
        rewards.append(reward)
        infos.append(info)
    return rewards, infos, env.run.result()


def test_gymnasium_accepts_it(env: TamiyoEnv, recwarn: pytest.WarningsRecorder) -> None:
    check_env(env, skip_render_check=True)
    about_bounds = ("maximum value is infinity", "minimum value is -infinity", "A Box observation space")
    found = [str(each.message) for each in recwarn if "gymnasium" in str(each.filename)]
    assert [each for each in found if not any(words in each for words in about_bounds)] == []


def test_the_registered_environment_is_made_by_name() -> None:
    with gymnasium.make(NAME, task="digits", steps=STEPS) as made:
        observation, info = made.reset(seed=1)
        assert made.observation_space.contains(observation)
        action = made.action_space.sample(mask=info["action_mask"])
        _, _, terminated, _, _ = made.step(action)
        assert not terminated


def test_rewards_sum_to_the_change_of_the_objective_less_the_costs(env: TamiyoEnv) -> None:
    rewards, infos, result = episode(env, 3)
    assert executed(result) == ["load_kernel"]
    first = infos[0]["worth"]
    assert sum(rewards) == pytest.approx(objective(result) - costs(result) - first, abs=1e-12)
    assert costs(result) > 0.01
    assert infos[-1]["adaptations"] == 1
    assert infos[-1]["training_step"] == STEPS


def test_an_episode_is_the_run_of_the_laboratory(env: TamiyoEnv) -> None:
    _, infos, result = episode(env, 3, load=False)
    never, _ = finished("never", RunSpec("digits", infos[0]["run_seed"], STEPS))
    assert result == never


def test_the_same_seed_and_actions_give_the_same_rewards(env: TamiyoEnv) -> None:
    first, _, result = episode(env, 5)
    again, _, _ = episode(env, 5)
    other = TamiyoEnv("digits", steps=STEPS)
    third, _, same = episode(other, 5)
    other.close()
    assert first == again == third
    assert same == result


def test_other_seeds_give_other_runs(env: TamiyoEnv) -> None:
    seeds = [env.reset(seed=0)[1]["run_seed"], env.reset()[1]["run_seed"], env.reset(seed=1)[1]["run_seed"]]
    assert len(set(seeds)) == 3
    assert env.reset(seed=0)[1]["run_seed"] == seeds[0]
    assert env.reset()[1]["run_seed"] == seeds[1]


def test_the_seed_of_a_run_can_be_given(env: TamiyoEnv) -> None:
    observation, info = env.reset(options={"run_seed": 7})
    assert info["run_seed"] == 7
    again, _ = env.reset(options={"run_seed": 7})
    reordered, _ = env.reset(options={"run_seed": 7, "data_seed": 8})
    np.testing.assert_array_equal(observation["node_features"], again["node_features"])
    assert (observation["node_features"] != reordered["node_features"]).any()
    with pytest.raises(ConfigurationError, match="unknown options seed"):
        env.reset(options={"seed": 7})


def test_the_observation_is_the_padded_graph(env: TamiyoEnv) -> None:
    observation, info = env.reset(seed=3)
    graph = env.run.graph
    assert graph is not None
    layers, edges = len(graph.layer_id), len(graph.edge_source)
    assert info["layers"] == graph.layer_id
    np.testing.assert_array_equal(observation["node_features"][:layers], graph.node_features.numpy())
    assert not observation["node_features"][layers:].any()
    assert observation["nodes"].tolist() == [1] * layers + [0] * (16 - layers)
    assert observation["edge_index"][:, :edges].tolist() == [graph.edge_source, graph.edge_target]
    assert (observation["edge_index"][:, edges:] == -1).all()
    np.testing.assert_array_equal(observation["global_features"], graph.global_features.numpy())
    mask = env.run.pipeline.mask(graph)
    np.testing.assert_array_equal(observation["action_mask"][: len(mask)], mask)
    assert not observation["action_mask"][len(mask) :].any()
    np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])


def test_an_illegal_action_counts_as_no_op(env: TamiyoEnv) -> None:
    expected, _, result = episode(env, 3, load=False)
    _, info = env.reset(seed=3)
    assert not info["illegal_action"]
    rewards, terminated = [], False
    while not terminated:
        illegal = int(np.flatnonzero(info["action_mask"] == 0)[-1])
        _, reward, terminated, _, info = env.step(illegal)
        assert info["illegal_action"]
        rewards.append(reward)
    assert rewards == expected
    assert env.run.result() == result


@pytest.mark.parametrize("action", [-1, 10**9, 0.5, float("nan"), None, "no_op"])
def test_what_is_no_action_is_refused(action: Any, env: TamiyoEnv) -> None:
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="expected an action below"):
        env.step(action)


def test_without_a_run_there_is_no_step(env: TamiyoEnv) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.describe(0)
    episode(env, 0, load=False)
    with pytest.raises(gymnasium.error.ResetNeeded, match="has ended"):
        env.step(0)
    env.close()
    env.close()


def test_interleaved_environments_do_not_disturb_each_other(env: TamiyoEnv) -> None:
    expected = [episode(env, seed)[0] for seed in (3, 4)]
    other, before = TamiyoEnv("digits", steps=STEPS), clock.current()
    infos = [one.reset(seed=seed)[1] for one, seed in ((env, 3), (other, 4))]
    found: list[list[float]] = [[], []]
    ended = [False, False]
    while not all(ended):
        for index, one in enumerate((env, other)):
            if not ended[index]:
                options = loads(one, infos[index])
                _, reward, ended[index], _, infos[index] = one.step(options[0] if options else 0)
                found[index].append(reward)
    other.close()
    assert found == expected
    assert clock.current() is before


def test_actions_in_words(env: TamiyoEnv) -> None:
    _, info = env.reset(seed=0)
    assert env.describe(0) == "no_op"
    assert env.describe(1) == f"{env.kinds[0]} at {info['layers'][0]}"
    assert env.describe(env.action_space.n - 1) == "no such layer"  # type: ignore[attr-defined]


def test_wrong_arguments_are_refused() -> None:
    for fields in ({"steps": -1}, {"max_layers": 0}, {"max_edges": 0}):
        with pytest.raises(ConfigurationError, match="expected steps of at least 0"):
            TamiyoEnv("digits", **fields)
    with pytest.raises(DatasetError, match="no task 'nothing'"):
        TamiyoEnv("nothing", steps=60).reset(seed=0)
    small = TamiyoEnv("digits", steps=100, max_layers=2)
    with pytest.raises(ConfigurationError, match="has 3 layers and 2 edges: max_layers=2"):
        small.reset(seed=0)
    small.close()
    short = TamiyoEnv("digits", steps=1)
    with pytest.raises(ConfigurationError, match="a run of 1 steps ends before its first decision"):
        short.reset(seed=0)
    short.close()
