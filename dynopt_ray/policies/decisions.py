"""What a decision is made on: the same for `adapt` and for the episodes of an environment."""

from dataclasses import dataclass

from dynopt_ray.arrays import FloatArray
from dynopt_ray.policies.actions import ActionMask, ActionSet
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.observation import EpisodeProgress, Observation, Performance, observe


@dataclass(frozen=True, eq=False)
class Situation:
    """What a policy is shown before it decides, for N networks.

    Attributes:
        observation: (N, features).
        action_mask: (N, actions), 1 where an action is legal.
    """

    observation: Observation
    action_mask: ActionMask


def situation(
    networks: Descriptors,
    *,
    now: Performance,
    before: Performance,
    num_samples: int,
    cost_weight: FloatArray,
    steps_left: FloatArray,
    actions: ActionSet,
) -> Situation:
    """Put together what a policy is shown.

    Args:
        networks: the networks, each with its cursor on the group that the decision is about.
        now: how they do.
        before: how they did at the decision before; the same as `now` at the first one.
        num_samples: training rows.
        cost_weight: λ, (N,).
        steps_left: fraction of the episode's decisions that remain, (N,).
        actions: what the policy chooses among.
    """
    progress = EpisodeProgress(now, before, num_samples, cost_weight, steps_left)
    return Situation(observe(networks, progress), actions.mask(networks))
