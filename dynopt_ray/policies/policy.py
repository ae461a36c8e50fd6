"""The `Policy` protocol, and the two simplest policies."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dynopt_ray.policies.actions import DEFAULT_ACTIONS, ActionMask, ActionSet, legal_action
from dynopt_ray.policies.observation import Observation


class Policy(Protocol):
    """Anything that chooses an action for an observation: a rule, a Q-table or a DQN."""

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """Return the place of the chosen action in the action set.

        Args:
            observation: the features of one network, and for policies that ask for `previews`
                those of each action.
            action_mask: 1 if an action is legal, else 0. At least one is legal.
        """


def wants_previews(policy: Policy) -> bool:
    """Return whether a policy wants to know what each action would do, which takes time to measure.

    Such a policy has an attribute `previews` that is true.
    """
    return bool(getattr(policy, "previews", False))


@dataclass
class RandomPolicy:
    """Draws uniformly from the legal actions. Every learned policy must beat it.

    Attributes:
        seed: seed of the random draws.
        avoid: places of actions that are drawn only if no other one is legal, such as those that
            end the episode.
    """

    seed: int = 0
    avoid: frozenset[int] = frozenset()
    _generator: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        """Return a random legal action."""
        legal = np.flatnonzero(action_mask)
        wanted = legal[~np.isin(legal, list(self.avoid))]
        return int(self._generator.choice(wanted if len(wanted) else legal))


@dataclass(frozen=True)
class ConstantPolicy:
    """Always takes the same action; if it is illegal, the one that `legal_action` falls back to.

    Attributes:
        action: the label of the action.
        actions: the action set that contains it.

    Raises:
        UnknownNameError: the action set has no action with this label.
    """

    action: str
    actions: ActionSet = DEFAULT_ACTIONS

    def __post_init__(self) -> None:
        self.actions.place(self.action)

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        """Return the action if it is legal, else the fallback."""
        return legal_action(self.action, action_mask, self.actions)
