"""Policy training with RLlib finds a known optimum, is repeatable, and survives interruptions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.core.columns import Columns

from dynopt_ray.cluster import PolicyProgress, train_policy
from dynopt_ray.cluster.policy_training.module import MaskedDuelingModule, exported_network
from dynopt_ray.errors import CheckpointError, DataError
from dynopt_ray.policies import (
    ConstantPolicy,
    DQNPolicy,
    DQNSettings,
    RandomPolicy,
    evaluate_policy,
)
from tests.policies.corridor import BEST_RETURN, CASH, CELLS, GO, ID, register

CORRIDOR: dict[str, Any] = {
    "env_id": ID,
    "num_steps": 4_000,
    "num_envs": 8,
    "warmup_steps": 200,
    "batch_size": 32,
    "updates_per_step": 2,
    "n_step": 3,
    "learning_rate": 2e-3,
    "target_rate": 0.02,
    "hidden": (32,),
    "head": 16,
    "save_every_steps": 400,
}
QUICK = CORRIDOR | {"num_steps": 1_200}


@pytest.fixture(autouse=True, scope="module")
def corridor() -> None:
    register()


class RunKilledError(Exception):
    """The run was killed."""


def interrupt_at(num_steps: int) -> Callable[[PolicyProgress], None]:
    def on_progress(progress: PolicyProgress) -> None:
        if progress.num_steps >= num_steps:
            raise RunKilledError

    return on_progress


def same(one: DQNPolicy, other: DQNPolicy) -> bool:
    pairs = zip(one.network.parameters(), other.network.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def module(
    seed: int = 0, num_action_features: int = 0, temperature: float | None = None
) -> MaskedDuelingModule:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return MaskedDuelingModule(
            observation_space=spaces.Dict(
                {
                    "observations": spaces.Box(-1, 1, (6,), np.float32),
                    "action_mask": spaces.Box(0, 1, (4,), np.int8),
                }
            ),
            action_space=spaces.Discrete(4),
            model_config={
                "hidden": [8],
                "head": 4,
                "num_action_features": num_action_features,
                "temperature": temperature,
            },
        )


def batch(num_rows: int = 400) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 2, (num_rows, 4), generator=generator, dtype=torch.int8)
    mask[torch.arange(num_rows), torch.randint(4, (num_rows,), generator=generator)] = 1
    features = torch.randn(num_rows, 6, generator=generator)
    return {Columns.OBS: {"observations": features, "action_mask": mask}}


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("zero", [False, True])
def test_exploration_never_takes_a_masked_action(epsilon: float, zero: bool) -> None:
    explorer, seen = module(), batch()
    explorer.epsilon = epsilon
    if zero:  # RLlib's own exploration takes legal Q-values of exactly 0 for masked ones
        for parameter in explorer.parameters():
            parameter.data.zero_()
    mask = seen[Columns.OBS]["action_mask"]
    counts = torch.zeros(4)
    for _ in range(20):
        actions = explorer.forward_exploration(seen, t=0)[Columns.ACTIONS]
        assert mask.gather(1, actions[:, None]).all()
        counts += torch.bincount(actions, minlength=4)
    if epsilon == 1:  # all legal actions are drawn equally often
        wanted = 20 * (mask / mask.sum(1, keepdim=True)).sum(0)
        assert counts.numpy() == pytest.approx(wanted.numpy(), rel=0.1)


def test_masked_actions_never_enter_targets() -> None:
    learner, seen = module(), batch()
    learner.make_target_networks()
    illegal = seen[Columns.OBS]["action_mask"] == 0
    train = learner.forward_train({**seen, Columns.NEXT_OBS: seen[Columns.OBS]})
    for name in ("qf_preds", "qf_next_preds", "qf_target_next_preds"):
        assert (train[name][illegal] == -torch.inf).all()
        assert train[name][~illegal].isfinite().all()


@pytest.mark.parametrize("num_action_features", [0, 1])
def test_the_exported_policy_acts_like_rllibs_greedy_one(num_action_features: int) -> None:
    original = module(3, num_action_features)
    network = exported_network(original.get_state(), [8], 4, 4, num_action_features)
    policy = DQNPolicy(network, hidden=[8], head=4)
    seen = batch()
    greedy = original.forward_inference(seen)[Columns.ACTIONS]
    features, mask = seen[Columns.OBS]["observations"], seen[Columns.OBS]["action_mask"]
    ours = [policy.act(f.numpy(), m.numpy()) for f, m in zip(features, mask, strict=True)]
    assert ours == greedy.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_step": 7}, "n_step is 7 but episodes end after 6"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"epsilon": 1.5}, "epsilon is 1.5"),
        ({"epsilon_start": 0.0}, "epsilon_start is 0.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"hidden": ()}, r"hidden is \[\]; give at least one width"),
    ],
)
def test_bad_settings_fail_before_ray_starts(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_policy(CORRIDOR | settings)


def test_environments_without_masks_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs Dict\(observations, action_mask\)"):
        train_policy({"env_id": "CartPole-v1"})


def test_a_temperature_draws_better_actions_more_often() -> None:
    explorer = module(temperature=0.1)
    explorer.epsilon = 1.0
    features, mask = torch.randn(6), torch.tensor([1, 1, 0, 1], dtype=torch.int8)
    rows = {"observations": features, "action_mask": mask}
    many: dict[str, Any] = {
        Columns.OBS: {name: row.expand(20_000, -1) for name, row in rows.items()}
    }
    drawn = explorer.forward_exploration(many, t=0)[Columns.ACTIONS]
    q_values = explorer.compute_q_values(many)[QF_PREDS][0]
    found = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(found, (q_values / 0.1).softmax(0), rtol=0, atol=0.02)


def test_epsilon_decreases_linearly_to_its_final_value() -> None:
    settings = DQNSettings(num_steps=1_000, epsilon=0.1, epsilon_fraction=0.5)
    found = [settings.epsilon_at(n) for n in (0, 250, 500, 1_000)]
    assert found == pytest.approx([1.0, 0.55, 0.1, 0.1])


@pytest.mark.ray
@pytest.mark.slow
def test_finds_the_best_way_past_the_traps() -> None:
    """Cashing is always the last step. With n = 3, a replay that skips ends would not learn it."""
    seen: list[PolicyProgress] = []
    policy = train_policy(CORRIDOR, on_progress=seen.append)
    for cell in range(CELLS):
        features, mask = np.eye(CELLS + 1, dtype=np.float32)[cell], np.ones(3, np.int8)
        assert policy.act(features, mask) == (GO if cell < CELLS - 1 else CASH)
    assert evaluate_policy(policy, ID, num_episodes=4).returns == pytest.approx(BEST_RETURN)
    steps = [progress.num_steps for progress in seen]
    assert steps == sorted(steps)
    assert steps[-1] >= 4_000
    assert seen[-1].mean_return is not None


@pytest.mark.ray
@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = train_policy(QUICK)
    with pytest.raises(RunKilledError):
        train_policy(QUICK, directory=tmp_path, on_progress=interrupt_at(900))
    seen: list[int] = []
    resumed = train_policy(
        QUICK, directory=tmp_path, on_progress=lambda progress: seen.append(progress.num_steps)
    )
    assert same(whole, resumed)
    # It continued from the latest save, not from the start.
    assert 800 < seen[0] < 900
    # A finished run is only loaded, not trained further.
    assert same(whole, train_policy(QUICK, directory=tmp_path))
    assert same(whole, DQNPolicy.load(tmp_path / "policy.safetensors"))


@pytest.mark.ray
@pytest.mark.slow
def test_the_seed_decides_the_result_and_global_state_is_restored() -> None:
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()  # type: ignore[index]
    first, second = train_policy(QUICK | {"seed": 1}), train_policy(QUICK | {"seed": 1})
    assert same(first, second)
    assert not same(first, train_policy(QUICK))
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # type: ignore[index]
    assert state[2] == torch.get_num_threads()


@pytest.mark.ray
@pytest.mark.slow
def test_damaged_and_foreign_runs_are_refused(tmp_path: Path) -> None:
    train_policy(QUICK | {"num_steps": 400}, directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"learning_rate = 0\.002, not 0\.001"):
        train_policy(QUICK | {"num_steps": 400, "learning_rate": 1e-3}, directory=tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="truncated"):
        train_policy(QUICK | {"num_steps": 400}, directory=tmp_path)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # ray.data's own
def test_environment_runners_and_learners_may_be_separate_processes() -> None:
    settings = QUICK | {"env_id": "dynopt_envs:dynopt/Architecture-v0", "num_envs": 2}
    options = {"start_steps": 20, "train_steps": 2, "horizon": 4, "num_starts": 2}
    settings |= {"env_kwargs": options, "num_steps": 120, "warmup_steps": 40}
    policy = train_policy(settings | {"num_env_runners": 1, "num_learners": 1})
    assert policy.metadata["num_steps"] >= 120


@pytest.mark.ray
@pytest.mark.slow
def test_a_learned_policy_beats_the_random_and_the_keep_policy() -> None:
    """8,000 steps at one λ take about 15 s on an idle machine."""
    options = {"task": "digits-mlp", "cost_weight": 0.3}
    policy = train_policy({"num_steps": 8_000, "env_kwargs": options})
    learned, by_chance, kept = (
        evaluate_policy(
            chosen, env_kwargs=options, num_episodes=32, seed=1_000
        ).smooth_utility.mean()
        for chosen in (policy, RandomPolicy(), ConstantPolicy("keep"))
    )
    assert learned > 0.88
    assert learned > by_chance + 0.1
    assert learned > kept + 0.1
