"""The replay cuts n-step transitions at episode ends, draws by priority, and is saved exactly."""

import numpy as np
import pytest

from dynopt_ray.cluster.policy_training.replay import PrioritizedReplay, Step


def replay(n_step: int = 3, capacity: int = 100) -> PrioritizedReplay:
    return PrioritizedReplay(
        capacity=capacity,
        num_features=1,
        num_actions=2,
        n_step=n_step,
        discount=0.5,
        alpha=1.0,
        beta=1.0,
        seed=0,
    )


def play(into: PrioritizedReplay, rewards: list[float], *, name: str, over: str = "end") -> None:
    """Add an episode whose observation at time t is t, and whose action is the parity of t."""
    mask = np.ones(2, np.int8)
    for t, reward in enumerate(rewards):
        step = Step(np.array([t], np.float32), mask, t % 2, reward)
        last = t == len(rewards) - 1
        into.add(
            name,
            step,
            np.array([t + 1], np.float32),
            mask,
            terminated=last and over == "end",
            truncated=last and over == "cut",
        )


def transitions(of: PrioritizedReplay) -> list[tuple[float, float, float, bool, int]]:
    """(from, to, reward, terminated, steps) in the order they were added."""
    data = of.state_dict()["data"]
    names = ("observations", "next_observations", "rewards", "terminated", "num_steps")
    columns = [np.ravel(data[name]).tolist() for name in names]
    return list(zip(*columns, strict=True))


def test_rewards_are_summed_and_transitions_are_cut_at_the_end() -> None:
    found = replay()
    play(found, [1, 2, 4, 8], name="a")
    assert transitions(found) == [
        (0, 3, 1 + 1 + 1, False, 3),
        (1, 4, 2 + 2 + 2, True, 3),
        (2, 4, 4 + 4, True, 2),
        (3, 4, 8, True, 1),
    ]


def test_episodes_shorter_than_n_give_transitions() -> None:
    found = replay(n_step=5)
    play(found, [1.0], name="a")
    play(found, [1.0, 1.0], name="b")
    assert [t[4] for t in transitions(found)] == [1, 2, 1]


def test_a_truncated_episode_does_not_count_as_terminated() -> None:
    found = replay(n_step=2)
    play(found, [1, 1, 1], name="a", over="cut")
    assert [t[3] for t in transitions(found)] == [False, False, False]


def test_episodes_may_be_interleaved_and_forgotten() -> None:
    found = replay(n_step=2)
    play(found, [1, 1], name="a", over="")
    play(found, [5, 5], name="b", over="")
    play(found, [7], name="a")
    # The unfinished transition of "a" ends with the next reward of "a", not of "b".
    assert transitions(found)[2] == (1, 1, 1 + 3.5, True, 2)
    found.forget_unfinished()
    play(found, [9], name="b")
    assert transitions(found)[-1] == (0, 1, 9, True, 1)


def test_draws_are_in_proportion_to_priority() -> None:
    found = replay(n_step=1)
    play(found, [0.0] * 4, name="a")
    found.update(np.arange(4), np.array([0.0, 1.0, 2.0, 5.0]))
    rows, columns = found.sample(20_000)
    shares = np.bincount(rows, minlength=4) / 20_000
    assert shares == pytest.approx([0, 1 / 8, 2 / 8, 5 / 8], abs=0.02)
    # β = 1 corrects the bias: every transition has the same total weight in expectation.
    mass = np.array([columns["weights"][rows == row].sum() for row in (1, 2, 3)])
    assert mass / mass.mean() == pytest.approx([1, 1, 1], abs=0.1)
    assert columns["weights"].max() == 1


def test_new_transitions_have_the_largest_priority() -> None:
    found = replay(n_step=1)
    play(found, [0.0] * 3, name="a")
    found.update(np.arange(3), np.array([4.0, 0.1, 0.1]))
    play(found, [0.0], name="b")
    assert found.state_dict()["data"]["priorities"][3] == pytest.approx(4.0, abs=0.01)


def test_new_transitions_replace_the_oldest() -> None:
    found = replay(n_step=1, capacity=4)
    play(found, [0, 1, 2, 3, 4, 5], name="a")
    assert len(found) == 4
    assert sorted(t[2] for t in transitions(found)) == [2, 3, 4, 5]


def test_a_restored_replay_draws_the_same() -> None:
    one, other = replay(), replay()
    play(one, [1, 2, 3, 4, 5], name="a")
    one.update(np.arange(3), np.array([3.0, 2.0, 1.0]))
    one.sample(7)
    other.load_state_dict(one.state_dict())
    for found in (one, other):
        play(found, [6, 7, 8, 9], name="b")
    (rows, columns), (other_rows, other_columns) = one.sample(50), other.sample(50)
    assert (rows == other_rows).all()
    assert all((columns[name] == other_columns[name]).all() for name in columns)


def test_a_state_that_does_not_fit_and_an_empty_draw_are_refused() -> None:
    big, small = replay(), replay(capacity=2)
    play(big, [1, 2, 3, 4], name="a")
    with pytest.raises(ValueError, match="does not fit one of capacity 2"):
        small.load_state_dict(big.state_dict())
    with pytest.raises(ValueError, match="no transition yet"):
        small.sample(1)
