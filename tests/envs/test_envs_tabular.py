"""The environment on a table: its optimum is exact, and it obeys Gymnasium's rules and our own."""

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

from dynopt_envs.network_table import EDITS, network_table
from dynopt_envs.tabular import TabularArchitectureEnv
from dynopt_envs.tabular_problem import (
    ACTIONS,
    GROW,
    KEEP,
    SHRINK,
    STOP,
    TABULAR_FEATURES,
    TabularConfig,
    TabularProblem,
)
from dynopt_ray.errors import DataError, DynoptError, EditError, SpecError, UnknownNameError
from dynopt_ray.policies import RandomPolicy, evaluate_policy, train_qtable
from dynopt_ray.structure import measure
from dynopt_ray.tasks import load_task
from experiments.tabular_networks import rows

ID = "dynopt_envs:dynopt/TabularArchitecture-v0"


def make(**options: Any) -> Any:
    return gymnasium.make(ID, **options).unwrapped


def make_vec(num_envs: int, **options: Any) -> Any:
    mode = "vector_entry_point"
    return gymnasium.make_vec(ID, num_envs, vectorization_mode=mode, **options).unwrapped


def returns_of_all_sequences(config: TabularConfig) -> dict[tuple[Any, float], float]:
    """The largest return of each start and λ, found by playing every sequence in the table alone.

    Nothing of the decision process is used: widths, edits, ages and costs are followed by hand.
    """
    table, found = network_table(), {}
    for start, weight in itertools.product(config.starts, config.cost_weights):

        def utility(widths: tuple[int, ...], edit: str, age: int) -> float:
            row = table.rows[widths, edit, age]  # type: ignore[index]
            cost = getattr(row, config.cost) / getattr(
                table.rows[start, "none", 0],  # noqa: B023
                config.cost,
            )
            return row.smooth - weight * float(cost)  # noqa: B023

        best = 0.0
        for sequence in itertools.product((KEEP, GROW, SHRINK), repeat=config.horizon):
            widths, edit, age = tuple(start), "none", 0
            for step, action in enumerate(sequence):
                layer = step % 2
                if action == KEEP:
                    age = min(age + 1, 4)
                else:
                    width = widths[layer] * 2 if action == GROW else widths[layer] // 2
                    if width not in table.widths or width > config.max_growth * start[layer]:
                        break
                    widths = (width, widths[1]) if layer == 0 else (widths[0], width)
                    edit, age = f"{ACTIONS[action]}_{layer + 1}", 1
                # It may stop after this decision.
                best = max(best, utility(widths, edit, age) - utility(start, "none", 0))
        found[start, weight] = best
    return found


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
@pytest.mark.parametrize(("cost", "max_growth"), [("flops", 2), ("params", 8)])
def test_the_optimum_is_the_best_of_all_sequences_of_actions(
    horizon: int, cost: str, max_growth: float
) -> None:
    config = TabularConfig(horizon=horizon, cost=cost, max_growth=max_growth)
    problem = TabularProblem(config)
    expected = returns_of_all_sequences(config)
    for state, value in zip(problem.states[: problem.num_initial], problem.values, strict=False):
        assert value == pytest.approx(expected[state.start, state.cost_weight], abs=1e-12)
    assert problem.optimal_return == pytest.approx(np.mean(list(expected.values())))
    assert problem.policy_return(problem.optimal_policy()) == pytest.approx(problem.optimal_return)


def test_the_optimal_policy_reaches_the_optimal_return_in_the_environment() -> None:
    problem = TabularProblem(TabularConfig())
    found = evaluate_policy(problem.optimal_policy(), ID, num_episodes=64, seed=3)
    starts = make_vec(64).reset(seed=3)[1]["smooth_utility"]
    np.testing.assert_allclose(found.returns, found.smooth_utility - starts, atol=1e-12)
    values = {
        tuple(row.tolist()): value
        for row, value in zip(problem.observations, problem.values, strict=True)
        if row[-1] == 1
    }
    shown = make_vec(64).reset(seed=3)[0]["observations"]
    assert found.returns == pytest.approx([values[tuple(row.tolist())] for row in shown])
    random = evaluate_policy(RandomPolicy(seed=0), ID, num_episodes=64, seed=3)
    assert random.returns.mean() < found.returns.mean() - 0.1


def test_observations_tell_states_apart_and_cells_do_so_too() -> None:
    problem = TabularProblem(TabularConfig())
    running = np.flatnonzero(~problem.over)
    assert len({problem.observations[state].tobytes() for state in running}) == len(running)
    edges = problem.cell_edges()
    cells = {
        tuple(
            int(np.searchsorted(cuts, problem.observations[state][index], side="right"))
            for index, cuts in edges.items()
        )
        for state in running
    }
    assert len(cells) == len(running)


def test_growing_pays_from_a_start_that_is_too_small_and_shrinking_from_one_too_large() -> None:
    problem = TabularProblem(TabularConfig())
    first = {
        (state.start, state.cost_weight): int(action)
        for state, action in zip(
            problem.states[: problem.num_initial], problem.best_actions, strict=False
        )
    }
    assert first[(4, 4), 0.1] == GROW
    assert {first[(64, 64), weight] for weight in (0.1, 0.3, 0.6)} == {SHRINK}


def test_q_learning_comes_close_to_the_optimum() -> None:
    config = TabularConfig(horizon=3, starts=((16, 16),))
    problem = TabularProblem(config)
    table = train_qtable(
        ID,
        {"horizon": 3, "starts": [(16, 16)]},
        num_steps=6_000,
        edges=problem.cell_edges(),
        discount=1.0,
        seed=0,
    )
    assert problem.policy_return(table) >= 0.99 * problem.optimal_return > 0


def test_the_table_has_all_networks_with_the_costs_of_real_ones() -> None:
    table = network_table()
    assert table.widths == (2, 4, 8, 16, 32, 64)
    for first, second in itertools.product(table.widths, repeat=2):
        for edit in EDITS:
            kind, _, layer = edit.partition("_")
            width = (first, second)[int(layer or 1) - 1]
            # The widths stand after the edit, which came from a width that is in the table.
            exists = edit == "none" or (width // 2 if kind == "grow" else width * 2) in table.widths
            for age in range(5):
                expected = exists and (age > 0 or edit == "none")
                assert (((first, second), edit, age) in table.rows) == expected
    model = load_task("digits-mlp", {"hidden": [8, 32]}).new_model(seed=0)
    cost, row = measure(model, torch.zeros(1, 64)), table.rows[(8, 32), "none", 0]
    assert (row.params, row.flops) == (cost.params, cost.flops)


@pytest.mark.slow
def test_the_generator_trains_the_networks_of_the_table() -> None:
    """Up to the rounding of other processors and versions of torch."""
    for row in rows((4, 2)):
        widths = int(str(row["width_1"])), int(str(row["width_2"]))
        shipped = network_table().rows[widths, str(row["edit"]), int(str(row["age"]))]
        assert float(str(row["smooth"])) == pytest.approx(shipped.smooth, abs=0.01)
        assert float(str(row["test_metric"])) == pytest.approx(shipped.test_metric, abs=0.02)


@pytest.mark.filterwarnings("ignore:.*not within the observation space")
def test_passes_gymnasiums_checker() -> None:
    check_env(make(render_mode="rgb_array"))


def test_the_same_seed_gives_the_same_episode() -> None:
    episodes = []
    for _ in range(2):
        env, generator = make(), np.random.default_rng(1)
        seen, over, episode = env.reset(seed=5)[0], False, []
        while not over:
            action = int(generator.choice(np.flatnonzero(seen["action_mask"][:-1])))
            seen, reward, over, _, _ = env.step(action)
            episode.append((action, reward, seen["observations"].tolist()))
        episodes.append(episode)
    assert episodes[0] == episodes[1]
    env = make()
    assert len({env.reset(seed=seed)[1]["utility"] for seed in range(60)}) == 12


def test_a_vector_environment_equals_single_environments() -> None:
    vector, singles = make_vec(3), [make() for _ in range(3)]
    seen, _ = vector.reset(seed=7)
    alone = [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)]
    over, generator = [False] * 3, np.random.default_rng(0)
    for _ in range(20):
        for i in range(3):
            for name in ("observations", "action_mask"):
                np.testing.assert_array_equal(seen[name][i], alone[i][name])
        actions = np.array([generator.choice(np.flatnonzero(mask)) for mask in seen["action_mask"]])
        seen, rewards, terminated, _, info = vector.step(actions)
        for i, env in enumerate(singles):
            if over[i]:
                alone[i], over[i] = env.reset()[0], False
                assert rewards[i] == 0
            else:
                alone[i], reward, over[i], _, its_info = env.step(actions[i])
                assert reward == rewards[i]
                assert its_info["gradient_steps"] == info["gradient_steps"][i]
            assert terminated[i] == over[i]


def test_stop_neither_trains_nor_pays() -> None:
    env = make()
    _, before = env.reset(seed=0)
    *_, kept = env.step(KEEP)
    _, reward, terminated, _, info = env.step(STOP)
    assert (reward, terminated) == (0.0, True)
    assert (before["gradient_steps"], kept["gradient_steps"], info["gradient_steps"]) == (0, 20, 20)
    assert info["utility"] == kept["utility"]


def test_illegal_actions_are_refused() -> None:
    env = make(starts=[(64, 64)])
    env.reset(seed=0)
    assert env.action_masks().tolist() == [True, False, True, True]
    for action in (GROW, 4, -1):
        with pytest.raises(EditError, match=r"allows 0 \(keep\), 2 \(shrink\), 3 \(stop\)"):
            env.step(action)
    with pytest.raises(InvalidAction, match=r"1\.5 is not an action; actions are 0 to 3"):
        env.step(1.5)
    vector = make_vec(2)
    with pytest.raises(ResetNeeded, match="call reset"):
        vector.step(np.array([0, 0]))
    vector.reset(seed=0)
    for actions in ([0.5, 0.5], [0], [[0, 0]]):
        with pytest.raises(InvalidAction, match="give 2 whole numbers from 0 to 3"):
            vector.step(np.array(actions))


def test_steps_need_an_episode() -> None:
    env = make(horizon=1)
    for call in (lambda: env.step(KEEP), env.action_masks):
        with pytest.raises(ResetNeeded, match="call reset"):
            call()
    env.reset(seed=0)
    assert env.step(KEEP)[2]
    with pytest.raises(ResetNeeded):
        env.step(KEEP)
    with pytest.raises(ValueError, match="reset takes no options, got cost_weight"):
        env.reset(options={"cost_weight": 0.1})


def test_policies_of_other_problems_are_refused() -> None:
    problem = TabularProblem(TabularConfig(horizon=2))
    optimal = problem.optimal_policy()
    with pytest.raises(DataError, match="no state of this policy's"):
        optimal.act(np.zeros(len(TABULAR_FEATURES), np.float32), np.ones(4, np.int8))

    class Growing:
        def act(self, observation: Any, action_mask: Any) -> int:
            del observation, action_mask
            return GROW

    with pytest.raises(DataError, match="illegal action 1"):
        problem.policy_return(Growing())


def test_unknown_render_modes_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="rgb_array"):
        TabularArchitectureEnv(render_mode="ansi")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"horizn": 3}, SpecError, "Did you mean 'horizon'"),
        ({"horizon": 0}, ValueError, "horizon is 0"),
        ({"horizon": 2.5}, ValueError, r"horizon is 2\.5"),
        ({"cost": "flop"}, UnknownNameError, "Did you mean 'flops'"),
        ({"cost_weights": [-1.0]}, ValueError, r"cost_weights has -1\.0"),
        ({"cost_weights": [float("nan")]}, ValueError, "cost_weights has nan"),
        ({"cost_weights": 0.3}, SpecError, r"cost_weights is 0\.3; give a list"),
        ({"cost_weights": [0.3, 0.3]}, ValueError, "give each value once"),
        ({"starts": []}, SpecError, r"starts is \[\]; give a list"),
        ({"starts": [(4, 5)]}, SpecError, r"starts has \(4, 5\); a start is two widths"),
        ({"starts": [4]}, SpecError, "starts has 4; a start is two widths"),
        ({"max_growth": 0.5}, ValueError, r"max_growth is 0\.5"),
    ],
)
def test_invalid_options_are_refused_with_a_hint(
    options: dict[str, Any], error: type[DynoptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)
