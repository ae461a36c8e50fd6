"""Every policy must act legally and repeatably on any observation."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.policies import (
    DEFAULT_ACTIONS,
    FEATURES,
    ConstantPolicy,
    DataSizedWidths,
    DQNPolicy,
    DuelingNetwork,
    Policy,
    QTable,
    RandomPolicy,
    Rule,
    StalledGrowth,
    UselessShrinking,
)
from dynopt_ray.policies.learned.dqn import masked_q
from dynopt_ray.policies.learned.qtable import DEFAULT_EDGES
from dynopt_ray.testing import check_rule

GROW = DEFAULT_ACTIONS.place("grow")
KEEP = DEFAULT_ACTIONS.place("keep")
SHRINK = DEFAULT_ACTIONS.place("shrink")


NUM_ACTIONS = len(DEFAULT_ACTIONS)


def dqn() -> DQNPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = DuelingNetwork(len(FEATURES), NUM_ACTIONS, [16], 8)
    return DQNPolicy(network, hidden=[16], head=8)


def zero_dqn() -> DQNPolicy:
    """Return a DQN whose Q-values are all 0: a legal 0 must not be taken for a masked action."""
    policy = dqn()
    for parameter in policy.network.parameters():
        parameter.data.zero_()
    return policy


MEMBERS: dict[str, Callable[[], Policy]] = {
    "random": lambda: RandomPolicy(seed=1),
    "constant": lambda: ConstantPolicy("shrink"),
    "q-table": lambda: QTable(DEFAULT_EDGES, NUM_ACTIONS),
    "dqn": dqn,
    "dqn of zeros": zero_dqn,
    "stalled_growth": StalledGrowth,
    "useless_shrinking": UselessShrinking,
    "data_sized_widths": DataSizedWidths,
}


def cases(num_cases: int = 300) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return random observations, and random masks in which keep is always legal."""
    generator = np.random.default_rng(0)
    observations = generator.uniform(-10, 10, (num_cases, len(FEATURES))).astype(np.float32)
    masks = generator.integers(0, 2, (num_cases, NUM_ACTIONS)).astype(np.int8)
    masks[:, KEEP] = 1
    return list(zip(observations, masks, strict=True))


@pytest.mark.parametrize("name", MEMBERS)
def test_acts_legally_and_repeatably(name: str) -> None:
    first, second = MEMBERS[name](), MEMBERS[name]()
    for observation, mask in cases():
        before = observation.copy(), mask.copy()
        action = first.act(observation, mask)
        assert isinstance(action, int)
        assert mask[action]
        assert action == second.act(observation, mask)
        assert np.array_equal(observation, before[0])
        assert np.array_equal(mask, before[1])


@pytest.mark.parametrize("name", ["random", "q-table", "dqn", "dqn of zeros"])
def test_takes_the_only_legal_action(name: str) -> None:
    policy = MEMBERS[name]()
    generator = np.random.default_rng(1)
    for observation, _ in cases(100):
        only = int(generator.integers(NUM_ACTIONS))
        mask = np.zeros(NUM_ACTIONS, dtype=np.int8)
        mask[only] = 1
        assert policy.act(observation, mask) == only


def test_masked_q_values_are_minus_infinity_and_legal_zeros_stay() -> None:
    found = masked_q(torch.tensor([0.0, 5.0, 0.0, -1.0]), torch.tensor([1, 0, 0, 1]))
    assert found.tolist() == [0.0, -torch.inf, -torch.inf, -1.0]


@pytest.mark.parametrize("name", plugins.names("rules"))
def test_every_registered_rule_passes_the_kit(name: str) -> None:
    check_rule(plugins.load("rules", name))


def seen(**features: float) -> np.ndarray:
    observation = np.zeros(len(FEATURES), dtype=np.float32)
    for name, value in features.items():
        observation[FEATURES.index(name)] = value
    return observation


ALL = np.ones(NUM_ACTIONS, dtype=np.int8)


def test_growth_waits_for_a_stall_and_a_small_gap() -> None:
    stuck = {"train_loss": 0.5, "train_loss_change": -0.001, "loss_gap": 0.02}
    rule = StalledGrowth()
    assert rule.act(seen(**stuck), ALL) == GROW
    for change in ({"train_loss_change": -0.2}, {"loss_gap": 0.5}, {"train_loss": 0.001}):
        assert rule.act(seen(**stuck | change), ALL) == KEEP


def test_shrinking_waits_for_useless_units() -> None:
    rule = UselessShrinking(smallest_share=0.2)
    assert rule.act(seen(dead=0.1, redundant=0.15), ALL) == SHRINK
    assert rule.act(seen(dead=0.1), ALL) == KEEP


def test_widths_follow_the_size_of_the_data() -> None:
    rule = DataSizedWidths(samples_per_weight=1.0, slack=2.0)
    assert rule.act(seen(samples_per_weight=-0.5), ALL) == SHRINK
    assert rule.act(seen(samples_per_weight=0.1), ALL) == KEEP
    assert rule.act(seen(samples_per_weight=0.5), ALL) == GROW


def test_a_rule_by_name_or_as_a_function() -> None:
    useless = seen(dead=0.15)
    assert Rule("useless_shrinking").act(useless, ALL) == SHRINK
    assert Rule("useless_shrinking", smallest_share=0.2).act(useless, ALL) == KEEP
    assert Rule(lambda _observation, mask: int(mask.argmax())).act(useless, ALL) == KEEP
    with pytest.raises(UnknownNameError, match="useless_shrinking"):
        Rule("useless_shrinkin")
    with pytest.raises(SpecError, match="smallest_share"):
        Rule("useless_shrinking", smallest_shar=0.2)
    with pytest.raises(TypeError, match="no options"):
        Rule(lambda _observation, _mask: 0, smallest_share=0.2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: StalledGrowth(stall=-1.0),
        lambda: UselessShrinking(smallest_share=0.0),
        lambda: DataSizedWidths(samples_per_weight=0.0),
        lambda: DataSizedWidths(slack=1.0),
        lambda: QTable({}, 2),
        lambda: QTable({0: [1.0, 1.0]}, 2),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must|empty"):
        wrong()


def test_policies_can_be_pickled() -> None:
    for name, make in MEMBERS.items():
        policy, (observation, mask) = make(), cases(1)[0]
        copy = pickle.loads(pickle.dumps(policy))
        assert copy.act(observation, mask) == policy.act(observation, mask), name
