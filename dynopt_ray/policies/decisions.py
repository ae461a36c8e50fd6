"""The input of a decision, computed the same way in `adapt` and in environments."""

from dataclasses import dataclass

from dynopt_ray.arrays import FloatArray
from dynopt_ray.policies.actions import ActionMask, ActionSet
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.observation import EpisodeProgress, Observation, Performance, observe


@dataclass(frozen=True, eq=False)
class Situation:
    """The input of a policy's decision, for N networks.

    Attributes:
        observation: (N, features).
        action_mask: (N, actions), 1 if an action is legal, else 0.
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
    charges: FloatArray,
    steps_left: FloatArray,
    actions: ActionSet,
) -> Situation:
    """Return the input of a policy's decision.

    Args:
        networks: the descriptors of the networks. Each cursor is on the group to decide about.
        now: the networks' performance.
        before: their performance at the previous decision; equal to `now` at the first one.
        num_samples: number of training rows.
        cost_weight: λ, (N,).
        charges: weights of `CHARGED_COSTS` in the cost that utility charges for, (N, 4).
        steps_left: fraction of the episode's decisions that remain, (N,).
        actions: the actions that the policy chooses from.
    """
    progress = EpisodeProgress(now, before, num_samples, cost_weight, charges, steps_left)
    return Situation(observe(networks, progress), actions.mask(networks))
