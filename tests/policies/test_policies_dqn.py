"""DQN policies and Q-tables: saving, damaged files, and a known optimum."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dynopt_ray.errors import CheckpointError, DataError
from dynopt_ray.policies import (
    DQNPolicy,
    DuelingNetwork,
    QTable,
    RandomPolicy,
    evaluate_policy,
    train_qtable,
)
from dynopt_ray.policies.evaluation import PolicyEvaluation
from dynopt_ray.storage import write_state
from tests.policies.corridor import BEST_RETURN, CASH, CELLS, GO, ID, register

EDGES = {cell: [0.5] for cell in range(CELLS + 1)}


@pytest.fixture(autouse=True, scope="module")
def corridor() -> None:
    register()


def policy(seed: int = 0) -> DQNPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = DuelingNetwork(5, 3, [16, 8], 4)
    return DQNPolicy(network, hidden=[16, 8], head=4, metadata={"task": "corridor"})


def test_a_saved_policy_decides_the_same(tmp_path: Path) -> None:
    before = policy()
    before.save(tmp_path / "policy.safetensors")
    after = DQNPolicy.load(tmp_path / "policy.safetensors")
    assert after.metadata == {"task": "corridor"}
    assert (after.num_features, after.num_actions) == (5, 3)
    generator = np.random.default_rng(0)
    for _ in range(100):
        seen = generator.normal(size=5).astype(np.float32)
        mask = np.array([1, *generator.integers(0, 2, 2)], dtype=np.int8)
        assert torch.equal(before.q_values(seen, mask), after.q_values(seen, mask))


def judging(num_actions: int, seed: int = 0) -> DQNPolicy:
    """A policy for 4 features of the state and 3 of each action."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = DuelingNetwork(4 + 3 * num_actions, num_actions, [16, 8], 4, 3)
    return DQNPolicy(network, hidden=[16, 8], head=4)


def test_an_untrained_policy_takes_the_action_that_gains_most_right_away() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        seen = generator.normal(size=4 + 3 * 5).astype(np.float32)
        mask = np.array([1, *generator.integers(0, 2, 4)], dtype=np.int8)
        gains = np.where(mask, seen[4:].reshape(5, 3)[:, -1], -np.inf)
        assert judging(5).act(seen, mask) == gains.argmax()


def test_actions_are_judged_by_what_they_do_not_by_their_place(tmp_path: Path) -> None:
    before = judging(5)
    with torch.no_grad():
        last = before.network.get_parameter("advantage.2.weight")
        last.normal_(generator=torch.Generator().manual_seed(0))
    before.save(tmp_path / "policy.safetensors")
    after = DQNPolicy.load(tmp_path / "policy.safetensors")
    assert after.previews
    assert (after.num_features, after.num_actions) == (4 + 3 * 5, 5)
    seen = np.random.default_rng(0).normal(size=4 + 3 * 5).astype(np.float32)
    order = [3, 0, 4, 2, 1]
    moved = np.concatenate([seen[:4], seen[4:].reshape(5, 3)[order].ravel()])
    everything = np.ones(5, np.int8)
    one, other = before.q_values(seen, everything), after.q_values(moved, everything)
    torch.testing.assert_close(one[order], other)
    assert not policy().previews


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "missing"])
def test_damaged_policies_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    policy().save(path)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[:-10])
    elif damage == "altered":
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(CheckpointError):
        DQNPolicy.load(path)


def test_files_that_hold_no_policy_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_state(path, {"a": 1}, kind="network")
    with pytest.raises(CheckpointError, match="a policy is needed"):
        DQNPolicy.load(path)
    write_state(path, {"hidden": [3], "head": 2, "tensors": {}, "metadata": {}}, kind="policy")
    with pytest.raises(CheckpointError, match="cannot read"):
        DQNPolicy.load(path)


def test_observations_of_another_environment_are_refused() -> None:
    with pytest.raises(DataError, match="5 features and a mask of 3"):
        policy().act(np.zeros(4, np.float32), np.ones(3, np.int8))
    with pytest.raises(DataError, match="allows no action"):
        policy().act(np.zeros(5, np.float32), np.zeros(3, np.int8))


def test_dueling_centres_advantages() -> None:
    network = policy().network
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x).mean(1), network.value(network.encoder(x))[:, 0], atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_q_table_finds_the_best_policy(seed: int) -> None:
    table = train_qtable(ID, num_steps=4_000, edges=EDGES, num_envs=8, epsilon=0.2, seed=seed)
    for cell in range(CELLS):
        seen, mask = np.eye(CELLS + 1, dtype=np.float32)[cell], np.ones(3, np.int8)
        assert table.act(seen, mask) == (GO if cell < CELLS - 1 else CASH)
    assert evaluate_policy(table, ID, num_episodes=5).returns == pytest.approx(BEST_RETURN)


def test_a_q_table_is_repeatable_and_survives_the_disk(tmp_path: Path) -> None:
    first, second = (
        train_qtable(ID, num_steps=500, edges=EDGES, num_envs=4, seed=3) for _ in range(2)
    )
    first.save(tmp_path / "table.safetensors")
    loaded = QTable.load(tmp_path / "table.safetensors")
    for other in (second, loaded):
        assert first.values.keys() == other.values.keys()
        assert all(np.array_equal(first.values[cell], other.values[cell]) for cell in first.values)
        assert first.edges == other.edges
    path = tmp_path / "table.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        QTable.load(path)


def test_q_learning_by_hand() -> None:
    table = QTable({0: [0.5]}, num_actions=2)
    low, high, both = np.zeros(1, np.float32), np.ones(1, np.float32), np.ones(2, np.int8)
    table.learn(high, 0, 1.0, low, both, discount=0.5, terminated=True)
    table.learn(high, 1, 9.0, low, both, discount=0.5, terminated=True)
    table.learn(low, 1, 1.0, high, np.array([1, 0], np.int8), discount=0.5, terminated=False)
    # The future value is 1, not 9, because the mask forbids the action worth 9: 1 + 0.5 · 1.
    assert table.values[0,].tolist() == [0.0, 1.5]
    table.learn(low, 1, 1.0, high, both, discount=0.5, terminated=True)
    assert table.values[0,][1] == pytest.approx(1.5 + 2**-0.7 * (1.0 - 1.5))


def test_rewards_after_the_end_of_an_episode_do_not_count() -> None:
    """Paths through the corridor differ in length, and each has its own return."""
    found = evaluate_policy(RandomPolicy(0), ID, num_episodes=60)
    possible = {(n + 1, round(0.1 - 0.05 * n, 6)) for n in range(CELLS - 1)}
    possible |= {(CELLS, round(BEST_RETURN, 6)), (2, -0.3), (4, -0.4)}
    returns = {(int(n), round(r, 6)) for n, r in zip(found.num_steps, found.returns, strict=True)}
    assert len(returns) > 3
    assert returns <= possible


def test_evaluation_counts_whole_episodes() -> None:
    table = train_qtable(ID, num_steps=4_000, edges=EDGES, num_envs=8, epsilon=0.2)
    found = evaluate_policy(table, ID, num_episodes=70)
    assert isinstance(found, PolicyEvaluation)
    assert found.num_steps.tolist() == [CELLS] * 70
    assert np.isnan(found.utility).all()
    with pytest.raises(ValueError, match="num_episodes is 0"):
        evaluate_policy(table, ID, num_episodes=0)
