"""Policies: from an observation to an action."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dynopt_ray.policies.actions import DEFAULT_ACTIONS, ActionMask, ActionSet, legal_action
from dynopt_ray.policies.observation import Observation


class Policy(Protocol):
    """Anything that decides: a rule, a Q-table or a DQN."""

    def act(self, observation: Observation, action_mask: ActionMask) -> int:
        """The action for one observation.

        Args:
            observation: the features of one network.
            action_mask: 1 where an action is legal; at least one is.
        """


@dataclass
class RandomPolicy:
    """Draws uniformly among the legal actions: what every learned policy must beat.

    Attributes:
        seed: of the draws.
    """

    seed: int = 0
    _generator: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        """Any legal action."""
        return int(self._generator.choice(np.flatnonzero(action_mask)))


@dataclass(frozen=True)
class ConstantPolicy:
    """Always takes the same action; where that is illegal it keeps, or else gets smaller.

    Attributes:
        action: the label of the action.
        actions: the set that it is chosen from.

    Raises:
        UnknownNameError: the set has no action of this label.
    """

    action: str
    actions: ActionSet = DEFAULT_ACTIONS

    def __post_init__(self) -> None:
        self.actions.place(self.action)

    def act(self, observation: Observation, action_mask: ActionMask) -> int:  # noqa: ARG002
        """The action, if it is legal."""
        return legal_action(self.action, action_mask, self.actions)
