"""Training structure policies with RLlib, which stays behind this package."""

from dynopt_ray.cluster.policy_training.settings import PolicySettings
from dynopt_ray.cluster.policy_training.train import PolicyProgress, train_policy

__all__ = ["PolicyProgress", "PolicySettings", "train_policy"]
