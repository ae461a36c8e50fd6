"""Action sets: the actions that a policy chooses from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.policies.actions.action import Action, ActionMask
from dynopt_ray.policies.descriptors import Descriptors

ActionConfig = str | Mapping[str, Any] | Action
"""An action: its name, a mapping of its name and arguments, or the action itself."""

_DEFAULT = ("keep", "grow", "shrink", "prune", "stop")


class ActionSet(Sequence[Action]):
    """A fixed sequence of actions. A policy chooses one by its place, an index from 0.

    Args:
        actions: each action by name, as a mapping of `name` and its arguments, or as an object.
            Default: keep, grow, shrink, prune and stop.

    Raises:
        UnknownNameError: no action has this name; the message gives the closest match.
        SpecError: an action refuses its arguments, two actions have the same label, or there are
            no actions.

    Example:
        >>> actions = ActionSet(["keep", {"name": "shrink", "fraction": 0.5}, "stop"])
        >>> actions.labels
        ('keep', 'shrink', 'stop')
    """

    def __init__(self, actions: Sequence[ActionConfig] = _DEFAULT) -> None:
        self._actions = tuple(map(_built, actions))
        self.labels = tuple(action.label for action in self._actions)
        if len(set(self.labels)) < len(self.labels):
            raise SpecError(
                f"actions: two actions have the same label in {', '.join(self.labels)}; give each "
                "its own label"
            )
        if not self._actions:
            raise SpecError("actions is empty; give at least one action")

    @overload
    def __getitem__(self, place: int) -> Action: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Action]: ...
    def __getitem__(self, place: int | slice) -> Action | Sequence[Action]:
        return self._actions[place]

    def __len__(self) -> int:
        return len(self._actions)

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions)

    def __repr__(self) -> str:
        return f"ActionSet({list(self._actions)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSet) and self._actions == other._actions

    def __hash__(self) -> int:
        return hash(self._actions)

    def place(self, label: str) -> int:
        """Return the place of the action with this label.

        Raises:
            UnknownNameError: no action has this label.
        """
        if label not in self.labels:
            raise UnknownNameError("action", label, self.labels)
        return self.labels.index(label)

    def mask(self, networks: Descriptors) -> ActionMask:
        """Return which actions are legal for each network.

        Returns:
            int8 (N, actions), 1 if the action is legal, else 0.
        """
        return np.stack([action.legal(networks) for action in self], axis=1).astype(np.int8)


def _built(action: ActionConfig) -> Action:
    if isinstance(action, str | Mapping):
        made: Action = plugins.build("actions", action)
        return made
    return action


DEFAULT_ACTIONS = ActionSet()
"""Keep, grow, shrink, prune, stop."""


def legal_action(
    preferred: str, action_mask: ActionMask, actions: ActionSet = DEFAULT_ACTIONS
) -> int:
    """Return the place of the preferred action if it is legal, else of keep, else of any legal one.

    Above a budget only actions that lower a cost are legal, so the last case makes the network
    cheaper.

    Args:
        preferred: the label of an action.
        action_mask: 1 if an action is legal, else 0. At least one must be legal.
        actions: the actions that the mask refers to.
    """
    for label in (preferred, "keep"):
        if label in actions.labels and action_mask[actions.place(label)]:
            return actions.place(label)
    return int(np.flatnonzero(action_mask)[0])
