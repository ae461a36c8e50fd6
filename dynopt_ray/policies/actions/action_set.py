"""The actions that a policy chooses among."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from dynopt_ray import plugins
from dynopt_ray.errors import SpecError, UnknownNameError
from dynopt_ray.policies.actions.action import Action, ActionMask
from dynopt_ray.policies.descriptors import Descriptors

ActionConfig = str | Mapping[str, Any] | Action
"""An action's name, a mapping of its name and arguments, or the action itself."""

_DEFAULT = ("keep", "grow", "shrink", "prune", "stop")


class ActionSet(Sequence[Action]):
    """Actions in a fixed order: a policy names one by its place.

    Args:
        actions: the actions; each by name, as a mapping of `name` and its arguments, or as an
            object. The default is keep, grow, shrink, prune and stop.

    Raises:
        UnknownNameError: there is no action of this name; with the closest match.
        SpecError: an action refuses its arguments, or two have one label.

    Example:
        >>> actions = ActionSet(["keep", {"name": "shrink", "fraction": 0.5}, "stop"])
        >>> actions.labels
        ('keep', 'shrink', 'stop')
    """

    def __init__(self, actions: Sequence[ActionConfig] = _DEFAULT) -> None:
        self._actions = tuple(map(_built, actions))
        self.labels = tuple(action.label for action in self._actions)
        if len(set(self.labels)) < len(self.labels):
            raise SpecError(f"actions: two have one label in {', '.join(self.labels)}")
        if not self._actions:
            raise SpecError("actions: give at least one")

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
        """The place of the action of this label.

        Raises:
            UnknownNameError: there is none.
        """
        if label not in self.labels:
            raise UnknownNameError("action", label, self.labels)
        return self.labels.index(label)

    def mask(self, networks: Descriptors) -> ActionMask:
        """Which actions are legal.

        Returns:
            int8 (N, actions), 1 where legal.
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
    """The place of the preferred action if it is legal, else that of keep, else any legal one.

    Above a budget only actions that lower a cost are legal, so the last case makes the network
    smaller.

    Args:
        preferred: the label of an action.
        action_mask: 1 where an action is legal; at least one is.
        actions: what the mask is about.
    """
    for label in (preferred, "keep"):
        if label in actions.labels and action_mask[actions.place(label)]:
            return actions.place(label)
    return int(np.flatnonzero(action_mask)[0])
