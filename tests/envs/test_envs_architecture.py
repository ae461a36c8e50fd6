"""The architecture environment: Gymnasium's rules and our own."""

import copy
import pickle
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dynopt_ray.errors import DynoptError, EditError, SpecError, UnknownNameError
from dynopt_ray.policies import DEFAULT_ACTIONS, FEATURES, Rule, adapt
from dynopt_ray.tasks import Task

GROW = DEFAULT_ACTIONS.place("grow")
NO_ROOM = {"name": "grow", "max_growth": 1.0}
KEEP = DEFAULT_ACTIONS.place("keep")
PRUNE = DEFAULT_ACTIONS.place("prune")
SHRINK = DEFAULT_ACTIONS.place("shrink")
STOP = DEFAULT_ACTIONS.place("stop")


ID = "dynopt_envs:dynopt/Architecture-v0"
QUICK: dict[str, Any] = {"num_starts": 3, "start_steps": 30, "train_steps": 4, "horizon": 6}


def make(**options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(ID, **(QUICK | options))


def make_vec(num_envs: int, **options: Any) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    mode = "vector_entry_point"
    return gymnasium.make_vec(ID, num_envs, vectorization_mode=mode, **(QUICK | options))


def legal(mask: NDArray[np.int8], generator: np.random.Generator) -> int:
    return int(generator.choice(np.flatnonzero(mask)))


@pytest.mark.parametrize("backend", ["population", "module"])
def test_passes_gymnasiums_checker(backend: str, mlp_task: Task) -> None:
    check_env(make(task=mlp_task, backend=backend).unwrapped, skip_render_check=True)


def test_importing_the_package_registers_it() -> None:
    code = "import dynopt_envs, gymnasium; print('dynopt/Architecture-v0' in gymnasium.registry)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "True"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_backends_give_the_same_episode(seed: int, mlp_task: Task) -> None:
    """The same actions and seed give the same observations, rewards, masks and ends."""
    envs = [make(task=mlp_task, backend=backend) for backend in ("population", "module")]
    seen, info = zip(*(env.reset(seed=seed) for env in envs), strict=True)
    generator, over = np.random.default_rng(seed), False
    while not over:
        ours, theirs = seen
        assert np.abs(ours["observations"] - theirs["observations"]).max() < 1e-3
        assert (ours["action_mask"] == theirs["action_mask"]).all()
        assert info[0]["cost_weight"] == info[1]["cost_weight"]
        assert info[0]["relative_cost"] == info[1]["relative_cost"]
        for figure in ("metric", "smooth_utility"):
            assert info[0][figure] == pytest.approx(info[1][figure], abs=1e-3)
        action = legal(ours["action_mask"][:-1], generator)
        (*first, _, _), (*second, _, _) = results = [env.step(np.int64(action)) for env in envs]
        seen, info = [r[0] for r in results], [r[4] for r in results]  # type: ignore[assignment]
        assert first[1] == pytest.approx(second[1], abs=1e-3)
        assert first[2] == second[2]
        over = bool(first[2])


@pytest.mark.parametrize("backend", ["population", "module"])
def test_a_vector_environment_equals_single_environments(backend: str, mlp_task: Task) -> None:
    vector = make_vec(3, task=mlp_task, backend=backend)
    singles = [make(task=mlp_task, backend=backend) for _ in range(3)]
    seen, _ = vector.reset(seed=7)
    alone = [env.reset(seed=7 + i)[0] for i, env in enumerate(singles)]
    over = [False] * 3
    generator = np.random.default_rng(0)
    for _ in range(2 * QUICK["horizon"]):
        for i in range(3):
            assert np.abs(seen["observations"][i] - alone[i]["observations"]).max() < 1e-4
            assert (seen["action_mask"][i] == alone[i]["action_mask"]).all()
        actions = [legal(mask, generator) for mask in seen["action_mask"]]
        seen, rewards, terminated, _, _ = vector.step(np.array(actions))
        for i, env in enumerate(singles):
            if over[i]:
                alone[i], over[i] = env.reset()[0], False
                assert rewards[i] == 0
            else:
                alone[i], reward, over[i], _, _ = env.step(np.int64(actions[i]))
                assert reward == pytest.approx(rewards[i], abs=1e-4)
            assert terminated[i] == over[i]


def test_the_vector_environment_declares_its_autoreset_mode() -> None:
    assert make_vec(2).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize("backend", ["population", "module"])
def test_the_same_seed_gives_the_same_episode(backend: str, mlp_task: Task) -> None:
    returns = []
    for _ in range(2):
        env = make(task=mlp_task, backend=backend)
        seen, _ = env.reset(seed=5)
        generator, rewards, over = np.random.default_rng(1), [], False
        while not over:
            seen, reward, over, _, _ = env.step(np.int64(legal(seen["action_mask"], generator)))
            rewards.append(reward)
        returns.append(rewards)
    assert returns[0] == returns[1]


def test_gains_add_up_to_the_change_of_smooth_utility(mlp_task: Task) -> None:
    gain, level = (make(task=mlp_task, reward=kind, cost_weight=0.4) for kind in ("gain", "level"))
    _, info = gain.reset(seed=3)
    level.reset(seed=3)
    start, total = info["smooth_utility"], 0.0
    for action in (SHRINK, KEEP, PRUNE, GROW):
        _, reward, _, _, info = gain.step(np.int64(action))
        total += float(reward)
        assert level.step(np.int64(action))[1] == pytest.approx(info["smooth_utility"])
    assert total == pytest.approx(info["smooth_utility"] - start)


@pytest.mark.parametrize("backend", ["population", "module"])
def test_utility_uses_accuracy_and_smooth_utility_the_smooth_metric(
    backend: str, mlp_task: Task
) -> None:
    env = make(task=mlp_task, backend=backend, cost_weight=0.4)
    env.reset(seed=3)
    seen, _, _, _, info = env.step(np.int64(SHRINK))
    charged = 0.4 * info["relative_cost"]
    num_rows = len(mlp_task.arrays("validation")[1])
    assert info["utility"] == pytest.approx(info["metric"] - charged)
    assert info["metric"] * num_rows == pytest.approx(round(info["metric"] * num_rows))
    smooth = float(seen["observations"][FEATURES.index("metric")])
    assert info["smooth_utility"] == pytest.approx(smooth - charged)
    assert info["smooth_utility"] != pytest.approx(info["utility"], abs=1e-4)


def test_the_cost_weight_is_drawn_and_observed() -> None:
    env = make_vec(8)
    seen, info = env.reset(seed=0)
    assert len(set(info["cost_weight"])) == 8
    shown = seen["observations"][:, FEATURES.index("cost_weight")]
    assert shown == pytest.approx(info["cost_weight"])
    assert (make_vec(2, cost_weight=0.25).reset()[1]["cost_weight"] == 0.25).all()


def test_stop_ends_without_change(mlp_task: Task) -> None:
    env = make(task=mlp_task)
    _, before = env.reset(seed=0)
    _, reward, terminated, truncated, after = env.step(np.int64(STOP))
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert after["utility"] == before["utility"]


def test_the_cursor_visits_every_group_in_turn(mlp_task: Task) -> None:
    env = make(task=mlp_task, horizon=4)
    seen, _ = env.reset(seed=0)
    depths = []
    for _ in range(4):
        depths.append(float(seen["observations"][FEATURES.index("depth")]))
        seen, _, terminated, _, _ = env.step(np.int64(KEEP))
    assert depths == [0, 1, 0, 1]
    assert terminated


def test_actions_that_would_change_nothing_are_masked(mlp_task: Task) -> None:
    actions = ["keep", NO_ROOM, {"name": "shrink", "fraction": 0.9}, "prune", "stop"]
    env = make(task=mlp_task, horizon=60, actions=actions, train_steps=1)
    _, info = env.reset(seed=0)
    assert not info["action_mask"][GROW]
    for _ in range(4):
        *_, info = env.step(np.int64(SHRINK if info["action_mask"][2] else KEEP))
    # One unit is left in each layer.
    assert not info["action_mask"][SHRINK]
    assert info["action_mask"][GROW]
    assert info["action_mask"][[KEEP, STOP]].all()


@pytest.mark.parametrize("action", [1, 2, -1])
def test_illegal_actions_are_refused(action: int, mlp_task: Task) -> None:
    env = make(task=mlp_task, actions=["keep", NO_ROOM]).unwrapped
    env.reset(seed=0)
    with pytest.raises(EditError, match=r"0 \(keep\)"):
        env.step(np.int64(action))


def test_steps_need_an_episode_and_a_whole_number(mlp_task: Task) -> None:
    env = make(task=mlp_task, horizon=1).unwrapped
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"1\.5 is not an action; actions are 0 to 4"):
        env.step(1.5)
    assert env.step(np.int64(0))[2]
    with pytest.raises(ResetNeeded):
        env.step(np.int64(0))


@pytest.mark.slow
def test_forked_environments_do_not_wait_for_threads_of_the_parent() -> None:
    code = (
        "import gymnasium, torch\n"
        "torch.set_num_threads(2)\n"
        "torch.randn(2000, 2000) @ torch.randn(2000, 2000)\n"
        "env = gymnasium.make_vec('dynopt_envs:dynopt/Architecture-v0', num_envs=2, horizon=3,\n"
        "    vectorization_mode='async')\n"
        "env.reset(seed=0); env.step([0, 2]); env.close()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_element_of_the_action_space_is_accepted(mlp_task: Task) -> None:
    env = make(task=mlp_task).unwrapped
    env.reset(seed=0)
    for action in (np.array(2), 2, np.int32(0)):
        assert env.action_space.contains(action)
        env.step(action)


@pytest.mark.parametrize("actions", [[0.5, 1.5], [0], [[0, 0]]])
def test_a_vector_environment_refuses_invalid_actions(actions: list[Any], mlp_task: Task) -> None:
    env = make_vec(2, task=mlp_task)
    env.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="give 2 whole numbers from 0 to 4"):
        env.step(np.array(actions))


def test_observations_stay_inside_their_space(mlp_task: Task) -> None:
    env = make_vec(4, task=mlp_task, horizon=20)
    seen, _ = env.reset(seed=0)
    generator = np.random.default_rng(0)
    for _ in range(40):
        assert env.observation_space.contains(seen)
        seen, *_ = env.step(np.array([legal(mask, generator) for mask in seen["action_mask"]]))


def test_a_convolutional_network_runs_on_the_module_backend(cnn_task: Task) -> None:
    env = make(task=cnn_task)
    seen, _ = env.reset(seed=0)
    assert seen["observations"][FEATURES.index("kind_convolution")] == 1
    for action in (
        SHRINK,
        GROW,
        PRUNE,
        SHRINK,
        SHRINK,
    ):
        _, _, _, _, info = env.step(np.int64(action))
    assert info["relative_cost"] < 1
    with pytest.raises(ValueError, match="network is not nn"):
        make(task=cnn_task, backend="population")


def test_a_task_from_loaders_runs_on_the_module_backend(mlp_task: Task) -> None:
    train, validation = [mlp_task.arrays("train")], [mlp_task.arrays("validation")]
    task = Task.from_loaders(model=mlp_task.model, train=train, validation=validation)
    env = make(task=task)
    env.reset(seed=0)
    *_, info = env.step(np.int64(SHRINK))
    assert info["relative_cost"] < 1
    with pytest.raises(ValueError, match="its data come from loaders"):
        make(task=task, backend="population")


def test_resets_reuse_the_pool(mlp_task: Task) -> None:
    """Resets train no new networks: 40 resets draw from the 3 networks of the pool."""
    env = make(task=mlp_task)
    starts = {env.reset(seed=seed)[1]["metric"] for seed in range(40)}
    assert len(starts) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"horizn": 3}, SpecError, "Did you mean 'horizon'"),
        ({"reward": "gains"}, UnknownNameError, "Did you mean 'gain'"),
        ({"cost": "flop"}, UnknownNameError, "Did you mean 'flops'"),
        ({"backend": "modul"}, UnknownNameError, "Did you mean 'module'"),
        ({"task": "digits-mpl"}, UnknownNameError, "Did you mean 'digits-mlp'"),
        ({"horizon": 0}, ValueError, "horizon is 0"),
        ({"cost_weight": -1.0}, ValueError, "cost_weight is -1.0"),
        ({"actions": [{"name": "shrink", "fraction": 1.5}]}, SpecError, "fraction is 1.5"),
        ({"actions": ["shrnk"]}, UnknownNameError, "Did you mean 'shrink'"),
    ],
)
def test_invalid_options_are_refused_with_a_hint(
    options: dict[str, Any], error: type[DynoptError], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_adapt_and_the_environment_give_the_same_observations(mlp_task: Task) -> None:
    """The same network, actions and seed give the same features at each of six decisions."""
    chosen = [SHRINK, GROW, KEEP, SHRINK, GROW]
    task = Task.from_arrays(
        model=mlp_task.new_model,
        train=mlp_task.arrays("train"),
        validation=mlp_task.arrays("validation"),
        batch_size=32,
        name="small-batches",
    )
    env = make(task=task, backend="module", cost_weight=0.3, horizon=6, train_steps=5)
    seen, _ = env.reset(seed=1)
    unwrapped: Any = env.unwrapped
    start = unwrapped._episodes._backend._networks[0]
    model, optimizer = copy.deepcopy((start.graph.model, start.optimizer))
    shown = [seen["observations"]]
    shown += [env.step(np.int64(action))[0]["observations"] for action in chosen]
    observed: list[NDArray[np.float32]] = []

    def script(observation: NDArray[np.float32], _: NDArray[np.int8]) -> int:
        observed.append(observation)
        return [*chosen, STOP][len(observed) - 1]

    adapt(
        model,
        task,
        Rule(script),
        cost_weight=0.3,
        horizon=6,
        train_steps=5,
        optimizer=optimizer,
        seed=start.seed,
    )
    for number, (one, other) in enumerate(zip(shown, observed, strict=True)):
        np.testing.assert_allclose(one, other, atol=1e-5, err_msg=f"decision {number}")
    for name in ("metric_change", "train_loss_change"):
        assert np.ptp([features[FEATURES.index(name)] for features in shown]) > 0


def test_a_stopped_episode_keeps_the_figures_of_its_last_decision(mlp_task: Task) -> None:
    # Barely trained networks, whose accuracy would move if they were trained on.
    env = make_vec(4, task=mlp_task, start_steps=1, train_steps=40)
    _, before = env.reset(seed=0)
    *_, after = env.step(np.array([STOP, STOP, STOP, KEEP]))
    for figure in ("metric", "utility", "smooth_utility", "relative_cost"):
        np.testing.assert_array_equal(after[figure][:3], before[figure][:3])
    assert after["metric"][3] > before["metric"][3]


def test_an_episode_draws_its_start_then_its_cost_weight_then_its_seed(mlp_task: Task) -> None:
    """In this order, so that seeds mean the same episodes in the next version."""
    env: Any = make(task=mlp_task)
    _, info = env.reset(seed=5)
    generator, _ = seeding.np_random(5)
    start = generator.integers(QUICK["num_starts"])
    assert info["cost_weight"] == generator.uniform(0.05, 0.75)
    population = env.unwrapped._episodes._backend._members
    assert population.seeds[0] == generator.integers(2**31 - 1)
    given: Any = make(task=mlp_task, cost_weight=0.2)
    given.reset(seed=5)
    again = given.unwrapped._episodes._backend
    assert again._members.seeds[0] == population.seeds[0]
    torch.testing.assert_close(again._members.weights[0][0], again._pool.weights[0][start])


def test_reset_takes_no_options() -> None:
    with pytest.raises(ValueError, match="reset takes no options, got cost_weight"):
        make().unwrapped.reset(options={"cost_weight": 0.1})


def test_its_spec_can_be_pickled() -> None:
    spec = make(cost_weight=0.1).spec
    env = gymnasium.make(pickle.loads(pickle.dumps(spec)))
    assert env.reset(seed=0)[1]["cost_weight"] == 0.1
