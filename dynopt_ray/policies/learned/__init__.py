"""Learned policies: a DQN and a Q-table. Both run without Ray."""

from dynopt_ray.policies.learned.dqn import DQNPolicy, DuelingNetwork, dueling, masked_q
from dynopt_ray.policies.learned.qtable import QTable, train_qtable
from dynopt_ray.policies.learned.settings import DQNSettings

__all__ = [
    "DQNPolicy",
    "DQNSettings",
    "DuelingNetwork",
    "QTable",
    "dueling",
    "masked_q",
    "train_qtable",
]
