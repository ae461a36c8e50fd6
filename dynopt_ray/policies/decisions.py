"""The input of a decision, computed the same way in `adapt` and in environments."""

from dataclasses import dataclass

import numpy as np

from dynopt_ray.policies.actions import ActionMask, ActionSet
from dynopt_ray.policies.descriptors import Descriptors
from dynopt_ray.policies.observation import EpisodeProgress, Observation, observe
from dynopt_ray.policies.previews import Preview, observe_actions


@dataclass(frozen=True, eq=False)
class Situation:
    """The input of a policy's decision, for N networks.

    Attributes:
        observation: (N, features), those of the network and, with a preview, of each action.
        action_mask: (N, actions), 1 if an action is legal, else 0.
    """

    observation: Observation
    action_mask: ActionMask


def situation(
    networks: Descriptors,
    progress: EpisodeProgress,
    actions: ActionSet,
    action_mask: ActionMask,
    preview: Preview | None = None,
) -> Situation:
    """Return the input of a policy's decision.

    Args:
        networks: the descriptors of the networks. Each cursor is on the group to decide about.
        progress: the networks' performance, and the progress of the episode.
        actions: the actions that the policy chooses from.
        action_mask: (N, actions), which of them are legal.
        preview: what each action would do. If given, the features of the actions follow those of
            the network.
    """
    features = observe(networks, progress)
    if preview is not None:
        of_actions = observe_actions(preview, networks, progress, actions, action_mask)
        features = np.concatenate([features, of_actions], axis=1)
    return Situation(features, action_mask)
